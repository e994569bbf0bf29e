"""Curves for Weights & Biases; nothing leaves the machine unless the config says mode='online'."""
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, read_metrics

MODES = ['offline', 'online', 'disabled']


@HOOKS.register_module()
class WandbHook(Hook):
    """Logs each metric and the run's config.

    Args:
        project: Project that the run belongs to.
        name: Name of the run; default: the name of the work folder and the stage.
        mode: 'offline' writes into the stage's folder only; 'online' sends; 'disabled' does nothing.
        interval: Steps between two points of a curve.

    Raises:
        ValueError: The mode is unknown, or the package is missing.
    """
    main_only = True

    def __init__(self, project: str = 'qvlkit', name: str | None = None, mode: str = 'offline', interval: int = 10):
        if mode not in MODES:
            raise ValueError(f'WandbHook.mode: expected one of {", ".join(MODES)}, got {mode!r}')
        self.project, self.name, self.mode = project, name, mode
        self.interval = check_interval(interval, 'WandbHook')
        try:
            import wandb
        except ImportError as error:
            raise ValueError('WandbHook needs the package wandb (pip install wandb); '
                             f'or take the hook out of the config ({error})') from error
        self._wandb, self._run = wandb, None

    def before_train(self, trainer) -> None:
        name = self.name or f'{trainer.work_dir.parent.name}-{trainer.work_dir.name}'
        self._run = self._wandb.init(project=self.project, name=name, mode=self.mode, dir=str(trainer.work_dir),
                                     config=trainer.config)

    def after_train_iter(self, trainer) -> None:
        if self.every(trainer, self.interval):
            self._run.log(read_metrics([trainer.metrics])[0], step=trainer.step)

    def after_run(self, trainer) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None
