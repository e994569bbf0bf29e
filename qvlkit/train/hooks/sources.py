"""Loss and tokens of each source of the data and of each size of picture, in `sources.jsonl` of the stage's folder."""
import json

import torch

from qvlkit.data.collate import BUCKET_NAMES
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, cut_lines


@HOOKS.register_module()
class SourcesHook(Hook):
    """Appends, every `interval` steps, a line with the mean loss, targets, tokens and samples since the line before:

        {"step": 100, "sources": {"charts": {"loss": 1.2, "targets": 5120, "tokens": 20480, "samples": 64}, ...},
         "pictures": {"up to 256 visual tokens": {"loss": 1.1, "targets": 4096}, ...}}

    The losses are summed on the device, and over ranks; nothing waits for them between two lines.

    Args:
        interval: Steps between two lines.
        file: Name of the file.
    """

    def __init__(self, interval: int = 100, file: str = 'sources.jsonl'):
        self.interval, self.file = check_interval(interval, 'SourcesHook'), file
        self._steps = 0  # since the last line

    def before_train(self, trainer) -> None:
        self._path = trainer.work_dir / self.file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._names = [source.name for source in trainer.loader.dataset.sources]
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._clear()
        self._cut(trainer)

    def after_train_iter(self, trainer) -> None:
        self._steps += 1
        if trainer.group_sums is not None:
            self._sums = trainer.group_sums if self._sums is None else self._sums + trainer.group_sums
        for row in trainer.rows:
            for source, length in zip(row.sources, row.attention.lengths_q):
                self._counts[self._numbers[source]][0] += length
                self._counts[self._numbers[source]][1] += 1
        if self.every(trainer, self.interval):
            self._write(trainer)

    def before_save_checkpoint(self, trainer) -> None:
        self._write(trainer)  # a checkpoint's steps are always in the file

    def after_rollback(self, trainer) -> None:
        self._clear()
        self._cut(trainer)

    def after_train(self, trainer) -> None:
        self._write(trainer)

    def _cut(self, trainer) -> None:
        if trainer.strategy.is_main:
            cut_lines(self._path, trainer.step)

    def _clear(self) -> None:
        self._steps, self._sums = 0, None
        self._counts = [[0, 0] for _ in self._names]  # tokens and samples of each source, on this rank

    def _write(self, trainer) -> None:
        """Add up over ranks, and write a line if there were steps since the last one. Every rank calls it."""
        if not self._steps:
            return
        sums = self._sums
        if sums is None:
            sums = torch.zeros(len(self._names) * len(BUCKET_NAMES), 2, dtype=torch.float64, device=trainer.device)
        sums = trainer.strategy.sum_over_ranks(sums).reshape(len(self._names), len(BUCKET_NAMES), 2).cpu()
        counts = torch.tensor(self._counts, device=trainer.device)
        counts = trainer.strategy.sum_over_ranks(counts).tolist()
        self._clear()
        if not sums.any() or not trainer.strategy.is_main:
            return
        sources = {name: {**_mean(total), 'tokens': tokens, 'samples': samples}
                   for name, total, (tokens, samples) in zip(self._names, sums.sum(1), counts) if samples}
        pictures = {name: _mean(total) for name, total in zip(BUCKET_NAMES, sums.sum(0)) if total[1]}
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(dict(step=trainer.step, sources=sources, pictures=pictures)) + '\n')


def _mean(total) -> dict:
    """(2,) sum of losses and number of targets -> their mean and the number."""
    loss, targets = total.tolist()
    return dict(loss=loss / targets if targets else None, targets=int(targets))
