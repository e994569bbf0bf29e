"""One line of JSON for each step, in `log.jsonl` of the stage's folder: what reports and comparisons read."""
import json
import os
import time

from qvlkit.registry import HOOKS
from qvlkit.train.hooks.base import Hook, check_interval, read_metrics


@HOOKS.register_module()
class JSONLHook(Hook):
    """Appends {"step", "seconds", loss, lr, ...} for every step.

    Rows wait in memory, as device tensors, and are written every `interval` steps and before each checkpoint. So a
    checkpoint's steps are always in the log, and a resume cuts the rows that the checkpoint does not know: the log of
    an interrupted run has each step once. A run that starts at step 0 moves an older log to `log.previous.jsonl`.

    Args:
        interval: Steps between two writings.
        file: Name of the file.
    """
    main_only = True

    def __init__(self, interval: int = 10, file: str = 'log.jsonl'):
        self.interval = check_interval(interval, 'JSONLHook')
        self.file = file
        self._waiting: list[dict] = []

    def before_train(self, trainer) -> None:
        self._path = trainer.work_dir / self.file
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._waiting.clear()
        if self._path.exists():
            self._keep_rows_until(trainer.step)
        self._start = time.perf_counter() - self._seconds_before(trainer.step)

    def after_train_iter(self, trainer) -> None:
        self._waiting.append({'step': trainer.step, 'seconds': round(time.perf_counter() - self._start, 4),
                              **trainer.metrics})
        if self.every(trainer, self.interval):
            self._write()

    def before_save_checkpoint(self, trainer) -> None:
        self._write()

    def after_rollback(self, trainer) -> None:
        self._waiting.clear()
        if self._path.exists():
            self._keep_rows_until(trainer.step)

    def after_train(self, trainer) -> None:
        self._write()

    def after_run(self, trainer) -> None:
        self._write()  # also where training broke off

    def _write(self) -> None:
        if not self._waiting:
            return
        lines = [json.dumps(row) + '\n' for row in read_metrics(self._waiting)]
        with open(self._path, 'a', encoding='utf-8') as file:
            file.writelines(lines)
        self._waiting.clear()

    def _keep_rows_until(self, step: int) -> None:
        if step == 0:
            os.replace(self._path, self._path.with_name(f'{self._path.stem}.previous{self._path.suffix}'))
            return
        kept = [row for row in read_log(self._path) if row['step'] <= step]
        temporary = self._path.with_name(f'{self._path.name}.tmp')
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in kept), encoding='utf-8')
        os.replace(temporary, self._path)

    def _seconds_before(self, step: int) -> float:
        rows = read_log(self._path) if step and self._path.exists() else []
        return rows[-1]['seconds'] if rows else 0.0


def read_log(path) -> list[dict]:
    """Rows of a log; a line that a kill cut in half is left out.

    Raises:
        ValueError: A line before the last is not a row.
    """
    with open(path, encoding='utf-8') as file:
        lines = file.read().split('\n')
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline comes nothing, or half a row
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: not a row of a log: {error}') from error
        if not isinstance(row, dict) or 'step' not in row:
            raise ValueError(f"{path}, line {number}: expected an object with 'step', got {line:.80}")
        rows.append(row)
    return rows
