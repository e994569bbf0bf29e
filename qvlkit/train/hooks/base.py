"""What a hook is: an object that the trainer calls at named points of the loop (MMEngine's names).

    before_run
      before_train                   the model, optimizer and data stand; a resumed trainer.step is set
        before_train_iter
        after_train_iter             trainer.step counts the step just done, from 1
        before_save_checkpoint       whenever a checkpoint is about to be written
      after_train
    after_run

A hook reads the trainer's public attributes and keeps its own state. It does not change the model; of the data it may
change the mixture, by `trainer.loader.set_weights`.
`trainer.metrics` is a new dict at each step; its numbers may be tensors on the device. Reading one waits for the
device, so hooks read every log interval only.
"""
import torch


class Hook:
    """Does nothing at every point; override the points that matter."""

    def before_run(self, trainer) -> None:
        """The stage begins."""

    def before_train(self, trainer) -> None:
        """Everything is built, and restored when resuming; no step has been made."""

    def before_train_iter(self, trainer) -> None:
        """A step begins."""

    def after_train_iter(self, trainer) -> None:
        """A step has ended."""

    def before_save_checkpoint(self, trainer) -> None:
        """A checkpoint of `trainer.step` is about to be written."""

    def after_train(self, trainer) -> None:
        """The last step has been made."""

    def after_run(self, trainer) -> None:
        """The stage ends."""

    @staticmethod
    def every(trainer, interval: int) -> bool:
        """Whether the step just done is a multiple of `interval`, or the last one."""
        return trainer.step % interval == 0 or trainer.step >= trainer.max_steps


def check_interval(interval: int, hook: str) -> int:
    """`interval` if it is a number of steps; ValueError else."""
    if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
        raise ValueError(f'{hook}.interval: expected a number of steps of at least 1, got {interval!r}')
    return interval


def read_metrics(rows: list[dict]) -> list[dict[str, float]]:
    """Metrics of several steps as Python numbers; everything that lies on a device is fetched in one transfer."""
    places = [(index, name) for index, row in enumerate(rows) for name in row if isinstance(row[name], torch.Tensor)]
    numbers = [dict(row) for row in rows]
    if places:
        values = torch.stack([rows[index][name].detach().double().reshape(()) for index, name in places]).tolist()
        for (index, name), value in zip(places, values):
            numbers[index][name] = value if rows[index][name].is_floating_point() else int(value)
    return numbers
