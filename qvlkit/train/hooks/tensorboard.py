"""Curves for TensorBoard, in `tensorboard/` of the stage's folder."""
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, read_metrics


@HOOKS.register_module()
class TensorBoardHook(Hook):
    """Writes each metric as a scalar `train/<name>`.

    Args:
        interval: Steps between two points of a curve.

    Raises:
        ValueError: The package is missing.
    """
    main_only = True

    def __init__(self, interval: int = 10):
        self.interval = check_interval(interval, 'TensorBoardHook')
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError('TensorBoardHook needs the package tensorboard (pip install tensorboard); '
                             f'or take the hook out of the config ({error})') from error
        self._make_writer, self._writer = SummaryWriter, None

    def before_train(self, trainer) -> None:
        # purge_step hides what an interrupted run wrote beyond the resumed step
        self._writer = self._make_writer(str(trainer.work_dir / 'tensorboard'), purge_step=trainer.step + 1)

    def after_train_iter(self, trainer) -> None:
        if self.every(trainer, self.interval):
            self.add_scalars({f'train/{name}': value for name, value in read_metrics([trainer.metrics])[0].items()},
                             trainer.step)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        """Points of other curves, by name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def after_rollback(self, trainer) -> None:
        self._writer.close()
        self.before_train(trainer)

    def before_save_checkpoint(self, trainer) -> None:
        self._writer.flush()

    def after_run(self, trainer) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
