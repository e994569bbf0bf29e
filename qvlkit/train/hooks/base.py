"""What a hook is: an object that the trainer calls at named points of the loop (MMEngine's names).

    before_run
      before_train                   the model, optimizer and data stand; a resumed trainer.step is set
        before_train_iter
        before_optimizer_step        gradients of all rows and ranks are added up, not clipped yet
        after_train_iter             trainer.step counts the step just done, from 1
        before_save_checkpoint       whenever a checkpoint is about to be written
        after_rollback               the guard has put the trainer back to an earlier checkpoint, trainer.step with it
      after_train
    after_run

A hook reads the trainer's public attributes and keeps its own state. It does not change the model; of the data it may
change the mixture, by `trainer.loader.set_weights`.
`trainer.metrics` is a new dict at each step; its numbers may be tensors on the device. Reading one waits for the
device, so hooks read every log interval only.

Where several processes train, every rank has every hook, and calls those that only print or write on the main rank
alone (`main_only`). Such a hook must not add up over ranks: the others would not answer.
"""
import json
import os
from pathlib import Path

import torch


class Hook:
    """Does nothing at every point; override the points that matter."""
    main_only = False  # whether ranks other than the main one leave it out

    @classmethod
    def misfit(cls, trainer: type) -> str | None:
        """Why stages of this class of trainers cannot have the hook; None if they can. Asked before anything is built.
        """
        return None

    def before_run(self, trainer) -> None:
        """The stage begins."""

    def before_train(self, trainer) -> None:
        """Everything is built, and restored when resuming; no step has been made."""

    def before_train_iter(self, trainer) -> None:
        """A step begins."""

    def before_optimizer_step(self, trainer) -> None:
        """Every gradient of the step is there; trainer.step does not count the step yet."""

    def after_train_iter(self, trainer) -> None:
        """A step has ended."""

    def before_save_checkpoint(self, trainer) -> None:
        """A checkpoint of `trainer.step` is about to be written."""

    def after_rollback(self, trainer) -> None:
        """Weights, optimizer and trainer.step are those of an earlier checkpoint: forget what came after it."""

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


def cut_lines(path: Path, step: int) -> None:
    """Leave out the lines of a JSONL file that are of later steps: of an earlier run, or behind a checkpoint."""
    if not path.exists():
        return
    lines = path.read_text(encoding='utf-8').split('\n')[:-1]  # behind the last newline is what a kill cut in half
    rows = [json.loads(line) for line in lines]
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows if row['step'] <= step), encoding='utf-8')
    os.replace(temporary, path)


def read_metrics(rows: list[dict]) -> list[dict[str, float]]:
    """Metrics of several steps as Python numbers; everything that lies on a device is fetched in one transfer."""
    places = [(index, name) for index, row in enumerate(rows) for name in row if isinstance(row[name], torch.Tensor)]
    numbers = [dict(row) for row in rows]
    if places:
        values = torch.stack([rows[index][name].detach().double().reshape(()) for index, name in places]).tolist()
        for (index, name), value in zip(places, values):
            numbers[index][name] = value if rows[index][name].is_floating_point() else int(value)
    return numbers
