"""Saves the training state every so many steps, and at the end."""
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval


@HOOKS.register_module()
class CheckpointHook(Hook):
    """Calls `trainer.save(keep=keep)`; a step is never saved twice.

    Args:
        interval: Steps between two checkpoints.
        keep: How many stay; None keeps all.
        at_end: Save after the last step also where it is no multiple of `interval`.
    """

    def __init__(self, interval: int = 500, keep: int | None = None, at_end: bool = True):
        self.interval = check_interval(interval, 'CheckpointHook')
        if keep is not None and keep < 1:
            raise ValueError(f'CheckpointHook.keep: expected at least 1 checkpoint or None for all, got {keep!r}')
        self.keep, self.at_end = keep, at_end
        self._saved = None

    def before_train(self, trainer) -> None:
        self._saved = trainer.step  # a resumed step lies on the disk already, and step 0 is nothing to save

    def after_train_iter(self, trainer) -> None:
        if trainer.step % self.interval == 0:
            self._save(trainer)

    def after_rollback(self, trainer) -> None:
        self._saved = trainer.step

    def after_train(self, trainer) -> None:
        if self.at_end:
            self._save(trainer)

    def _save(self, trainer) -> None:
        if trainer.step != self._saved:
            trainer.save(keep=self.keep)
            self._saved = trainer.step
