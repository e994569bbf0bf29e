"""Progress on the console: a bar where there is a terminal, plain lines where the output goes to a file."""
import time

from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, read_metrics


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Shows step, loss, learning rate, tokens per second and time left.

    Args:
        interval: Steps between two readings. A plain line is printed at each.
        console: A rich Console; default: a new one on stdout.
    """

    def __init__(self, interval: int = 10, console=None):
        self.interval = check_interval(interval, 'ConsoleHook')
        self._console = console
        self._bar = None

    def before_train(self, trainer) -> None:
        from rich.console import Console
        self._console = self._console or Console()
        self._since, self._since_step, self._tokens = time.perf_counter(), trainer.step, 0
        if self._console.is_terminal:
            self._start_bar(trainer)

    def after_train_iter(self, trainer) -> None:
        self._tokens = self._tokens + trainer.metrics.get('num_tokens', 0)  # stays on the device
        if not self.every(trainer, self.interval):
            return
        metrics = read_metrics([{**trainer.metrics, 'tokens': self._tokens}])[0]  # waits for the device
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        speed = metrics.pop('tokens') / seconds
        left = (trainer.max_steps - trainer.step) * seconds / (trainer.step - self._since_step)
        self._since, self._since_step, self._tokens = now, trainer.step, 0
        text = self._describe(metrics, speed)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.step, metrics=text, left=_clock(left))
        else:
            self._console.print(f'{trainer.stage} {trainer.step}/{trainer.max_steps}  {text}  {_clock(left)} left',
                                highlight=False, soft_wrap=True, markup=False)

    def after_train(self, trainer) -> None:
        self._stop_bar()

    def after_run(self, trainer) -> None:
        self._stop_bar()  # also where training broke off

    def _start_bar(self, trainer) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        self._bar = Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
                             TextColumn('{task.fields[metrics]}'), TextColumn('{task.fields[left]} left'),
                             console=self._console)
        self._task = self._bar.add_task(trainer.stage, total=trainer.max_steps, completed=trainer.step, metrics='',
                                        left='-:--:--')
        self._bar.start()

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    @staticmethod
    def _describe(metrics: dict, speed: float) -> str:
        formats = {'loss': '.4f', 'grad_norm': '.3f', 'lr': '.2e'}
        shown = [f'{name} {metrics[name]:{form}}' for name, form in formats.items() if name in metrics]
        return '  '.join([*shown, f'{speed:,.0f} tokens/s'])


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
