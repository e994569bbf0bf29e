"""Loss and tokens of each source of the data and of each size of picture, in `sources.jsonl` of the stage's folder."""
import json
import os

from qvlkit.data.collate import BUCKET_NAMES
from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval


@HOOKS.register_module()
class SourcesHook(Hook):
    """Appends, every `interval` steps, a line with the mean loss, targets, tokens and samples since the line before:

        {"step": 100, "sources": {"charts": {"loss": 1.2, "targets": 5120, "tokens": 20480, "samples": 64}, ...},
         "pictures": {"up to 256 visual tokens": {"loss": 1.1, "targets": 4096}, ...}}

    The losses are summed on the device; nothing waits for it between two lines.

    Args:
        interval: Steps between two lines.
        file: Name of the file.
    """

    def __init__(self, interval: int = 100, file: str = 'sources.jsonl'):
        self.interval, self.file = check_interval(interval, 'SourcesHook'), file

    def before_train(self, trainer) -> None:
        self._path = trainer.work_dir / self.file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():  # of an earlier run, or behind the checkpoint that is resumed
            rows = [json.loads(line) for line in self._path.read_text(encoding='utf-8').splitlines() if line]
            kept = ''.join(json.dumps(row) + '\n' for row in rows if row['step'] <= trainer.step)
            temporary = self._path.with_name(f'{self._path.name}.tmp')
            temporary.write_text(kept, encoding='utf-8')
            os.replace(temporary, self._path)
        self._names = [source.name for source in trainer.loader.dataset.sources]
        self._clear()

    def after_train_iter(self, trainer) -> None:
        if trainer.group_sums is not None:
            self._sums = trainer.group_sums if self._sums is None else self._sums + trainer.group_sums
        for row in trainer.rows:
            for source, length in zip(row.sources, row.attention.lengths_q):
                self._tokens[source] = self._tokens.get(source, 0) + length
                self._samples[source] = self._samples.get(source, 0) + 1
        if self.every(trainer, self.interval):
            self._write(trainer.step)

    def before_save_checkpoint(self, trainer) -> None:
        self._write(trainer.step)  # a checkpoint's steps are always in the file

    def after_train(self, trainer) -> None:
        self._write(trainer.step)

    def _clear(self) -> None:
        self._sums, self._tokens, self._samples = None, {}, {}

    def _write(self, step: int) -> None:
        if self._sums is None:
            return
        sums = self._sums.reshape(len(self._names), len(BUCKET_NAMES), 2).cpu()
        sources = {name: {**_mean(total), 'tokens': self._tokens.get(name, 0), 'samples': self._samples.get(name, 0)}
                   for name, total in zip(self._names, sums.sum(1)) if self._samples.get(name)}
        pictures = {name: _mean(total) for name, total in zip(BUCKET_NAMES, sums.sum(0)) if total[1]}
        with open(self._path, 'a', encoding='utf-8') as file:
            file.write(json.dumps(dict(step=step, sources=sources, pictures=pictures)) + '\n')
        self._clear()


def _mean(total) -> dict:
    """(2,) sum of losses and number of targets -> their mean and the number."""
    loss, targets = total.tolist()
    return dict(loss=loss / targets if targets else None, targets=int(targets))
