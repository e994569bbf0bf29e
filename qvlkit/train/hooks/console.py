"""Progress on the console: a bar where there is a terminal, plain lines where the output goes to a file."""
import time
from typing import Any

from qvlkit.planning.flops import format_flops
from qvlkit.planning.hardware import peak_flops
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, read_metrics

FORMATS = {'loss': '.4f', 'grad_norm': '.3f', 'lr': '.2e'}
UNSEEN = ('num_targets',)  # in the log, not on the console


@HOOKS.register_module()
class ConsoleHook(Hook):
    """Shows step, loss, learning rate, what else the trainer notes, tokens per second, use of the devices, time left.

    The use is MFU, model FLOPs utilization (PaLM, arXiv 2204.02311, appendix B): the operations that the parts say the
    step's samples need, forward and backward, with nothing counted that a backend computes again, over the devices'
    peak. Where the peak is not known, the operations per second stand instead.

    Args:
        interval: Steps between two readings. A plain line is printed at each.
        console: A rich Console; default: a new one on stdout.
    """
    main_only = True

    def __init__(self, interval: int = 10, console=None):
        self.interval = check_interval(interval, 'ConsoleHook')
        self._console = console
        self._bar = None

    def before_train(self, trainer) -> None:
        from rich.console import Console
        self._console = self._console or Console()
        self._peak = peak_flops(trainer.strategy.device, trainer.strategy.dtype)
        self._begin(trainer.step, time.perf_counter())
        if self._console.is_terminal:
            self._start_bar(trainer)

    def after_train_iter(self, trainer) -> None:
        for name in self._sums:  # stays on the device
            self._sums[name] = self._sums[name] + trainer.metrics.get(name, 0)
        if not self.every(trainer, self.interval):
            return
        metrics = read_metrics([{**trainer.metrics, **self._sums}])[0]  # waits for the device
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        left = (trainer.max_steps - trainer.step) * seconds / max(trainer.step - self._since_step, 1)
        text = self._describe(metrics, seconds, trainer.strategy.world_size)
        self._begin(trainer.step, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.step, metrics=text, left=_clock(left))
        else:
            self._console.print(f'{trainer.stage} {trainer.step}/{trainer.max_steps}  {text}  {_clock(left)} left',
                                highlight=False, soft_wrap=True, markup=False)

    def after_rollback(self, trainer) -> None:
        self._begin(trainer.step, time.perf_counter())

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

    def _begin(self, step: int, now: float) -> None:
        """An interval begins behind `step`."""
        self._since, self._since_step = now, step
        self._sums: dict[str, Any] = dict(num_tokens=0, flops=0, skipped=0)

    def _describe(self, metrics: dict, seconds: float, ranks: int) -> str:
        """The step's metrics in words; tokens, operations and skipped steps are those of the interval."""
        speed, rate = metrics['num_tokens'] / seconds, metrics['flops'] / seconds
        shown = [f'{name} {metrics[name]:{form}}' for name, form in FORMATS.items() if name in metrics]
        known = {*FORMATS, *UNSEEN, *self._sums}
        shown += [f'{name} {value:.4g}' for name, value in metrics.items() if name not in known]
        shown.append(f'{speed:,.0f} tokens/s')
        if rate and self._peak:
            shown.append(f'MFU {rate / (self._peak * ranks):.1%}')
        elif rate:
            shown.append(f'{format_flops(rate)}/s')
        if metrics['skipped']:
            shown.append(f'{metrics["skipped"]} skipped')
        return '  '.join(shown)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
