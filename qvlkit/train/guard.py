"""The guard of a long run: a step that would harm the weights is not made, and a run of them is taken back.

A step is bad if its loss or the norm of its gradients is not finite, or if its loss is more than `spike_factor` times
the median of the good steps before it. The loss is summed over ranks and the gradients too, so every rank judges alike.
A bad step changes neither weights nor the optimizer's state; for the data, the learning rate and the number of steps it
counts as any other. Which samples it was made of is written to `guard.jsonl` of the stage's folder.

After too many bad steps in a row the run goes back to the newest checkpoint from before the first of them and trains on
without their data; after too many returns, or without such a checkpoint, it stops.

What it costs: the verdict is found on the device, and torch's fused optimizers obey it there (as they do for its
GradScaler). On a GPU the host reads a verdict two steps later, when it has long been there, so a return begins up to
two steps late; for an optimizer that cannot be told on the device, the host waits for each verdict.
"""
import json
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from qvlkit.engine.checkpoint import CorruptCheckpointError, checkpoints
from qvlkit.registry import near_names

logger = logging.getLogger('qvlkit')

FEW_LOSSES = 20  # a median of fewer good steps tells nothing
DELAY = 2  # steps after which the host reads a verdict from a GPU
FILE = 'guard.jsonl'


class Guard:
    """Judges the steps of a stage.

    Args:
        enabled: False makes every step, whatever comes of it.
        max_skips_in_a_row: With so many bad steps in a row the run goes back.
        spike_factor: A loss of more than so many times the median is a spike; None allows any that is finite.
        spike_window: Good steps that the median is taken of; of the last 20 at least, or of so many if they are fewer.
        max_rollbacks: How often a run may go back; 0 stops it at once.

    Raises:
        ValueError: A value is outside its range.
    """

    def __init__(self, *, enabled: bool = True, max_skips_in_a_row: int = 5, spike_factor: float | None = 10.0,
                 spike_window: int = 100, max_rollbacks: int = 2):
        for key, value, least in (('max_skips_in_a_row', max_skips_in_a_row, 1), ('spike_window', spike_window, 1),
                                  ('max_rollbacks', max_rollbacks, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f'guard.{key}: expected a whole number of at least {least}, got {value!r}')
        if spike_factor is not None and not (isinstance(spike_factor, int | float) and spike_factor > 1):
            raise ValueError(f'guard.spike_factor: expected a number above 1 or None, got {spike_factor!r}')
        self.enabled, self.spike_factor, self.spike_window = enabled, spike_factor, spike_window
        self.max_skips_in_a_row, self.max_rollbacks = max_skips_in_a_row, max_rollbacks
        self.position = 0  # steps of data that were drawn
        self.left_out: set[int] = set()  # positions of data that are drawn and not trained on
        self.skipped, self.rollbacks = 0, 0
        self.streak: list[dict] = []  # the bad steps since the last good one
        self.median: torch.Tensor | None = None  # of the last verdict
        self._judged, self._losses = 0, [math.nan] * spike_window  # a list until the device is known
        self._pending: deque[dict] = deque()

    def draws(self) -> bool:
        """Another step of data has come: whether to train on it."""
        self.position += 1
        return self.position not in self.left_out

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """Loss and gradient norm of a step, the same on all ranks -> whether it is bad: a bool tensor on the device."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(grad_norm))
        if not self.enabled:
            return torch.zeros_like(bad)
        if self.spike_factor is not None:
            if isinstance(self._losses, list):
                self._losses = torch.tensor(self._losses, dtype=torch.float64).to(loss.device)
            enough = self._losses.isfinite().sum() >= min(FEW_LOSSES, self.spike_window)
            self.median = self._losses.nanmedian()
            bad = bad | (enough & (self.median > 0) & (loss > self.spike_factor * self.median))
            place = self._judged % self.spike_window
            self._losses[place] = torch.where(bad, self._losses[place], loss.double())
        self._judged += 1
        return bad

    def step(self, optimizer: torch.optim.Optimizer, bad: torch.Tensor) -> None:
        """Make the step unless it is bad."""
        if not self.enabled:
            optimizer.step()
        elif getattr(optimizer, '_step_supports_amp_scaling', False):  # torch's mark of those that obey `found_inf`
            optimizer.grad_scale, optimizer.found_inf = None, bad.float()
            optimizer.step()
        elif not bad:
            optimizer.step()

    def watch(self, trainer: Any) -> None:
        """A step was made: read the verdicts that are due, and write down the bad ones."""
        if not self.enabled:
            return
        rows = [(list(getattr(row, 'sample_ids', ())), list(getattr(row, 'sources', ()))) for row in trainer.rows]
        metrics, on_gpu, ready = trainer.metrics, trainer.device.type == 'cuda', None
        verdict = metrics['skipped'].to('cpu', non_blocking=True)
        if on_gpu:
            ready = torch.cuda.Event()
            ready.record()
        self._pending.append(dict(step=trainer.step, position=self.position, verdict=verdict, ready=ready, rows=rows,
                                  loss=metrics['loss'], grad_norm=metrics['grad_norm'], median=self.median,
                                  row_losses=trainer.row_losses))
        self.settle(trainer, DELAY if on_gpu else 0)

    def settle(self, trainer: Any, delay: int = 0) -> None:
        """Read all verdicts but the newest `delay`."""
        while len(self._pending) > delay:
            step = self._pending.popleft()
            if step['ready'] is not None:
                step['ready'].synchronize()
            if step['verdict'].item():
                self._write_down(trainer, step)
            else:
                self.streak.clear()

    @property
    def must_roll_back(self) -> bool:
        """Whether too many of the steps in a row that were read are bad."""
        return len(self.streak) >= self.max_skips_in_a_row

    def roll_back(self, trainer: Any, load: Callable[[Any, Any], Any]) -> None:
        """Put the trainer back to the newest checkpoint before the bad steps, and leave their data out from now on.

        Args:
            trainer: Its hooks are told by `after_rollback`.
            load: (trainer, checkpoint's folder) -> puts it back.

        Raises:
            ValueError: There is no such checkpoint, or the run went back too often; says what was seen.
        """
        self.settle(trainer)
        streak, seen = self.streak, self._describe(self.streak)
        if self.rollbacks >= self.max_rollbacks:
            raise ValueError(f'{trainer.stage}: {seen}; the run went back {self.rollbacks} times already '
                             f'(guard.max_rollbacks). The samples of each are in {trainer.work_dir / FILE}')
        mine = dict(left_out=self.left_out | {step['position'] for step in streak}, rollbacks=self.rollbacks + 1,
                    skipped=self.skipped)
        before = streak[0]['step'] - 1
        for folder in checkpoints(trainer.work_dir):
            if int(folder.name.split('_')[1].split('.')[0]) > before:
                continue
            try:
                load(trainer, folder)
                break
            except CorruptCheckpointError as error:
                logger.warning('CORRUPT CHECKPOINT, trying the one before it: %s', error)
        else:
            raise ValueError(f'{trainer.stage}: {seen}; there is no checkpoint from before them in {trainer.work_dir} '
                             f'to go back to. The samples of each are in {trainer.work_dir / FILE}')
        self.streak = []
        for name, value in mine.items():
            setattr(self, name, value)
        logger.warning('%s: %s; back to step %d, without the data of these steps (%d of %d)', trainer.stage, seen,
                       trainer.step, self.rollbacks, self.max_rollbacks)
        self._append(trainer, dict(step=streak[-1]['step'], rolled_back_to=trainer.step,
                                   left_out=[step['position'] for step in streak]))
        trainer.call_hooks('after_rollback')

    def state_dict(self) -> dict:
        """Counters, the data that are left out, and the losses that the median is taken of."""
        losses = self._losses if isinstance(self._losses, list) else self._losses.tolist()
        return dict(position=self.position, left_out=sorted(self.left_out), skipped=self.skipped,
                    rollbacks=self.rollbacks, streak=self.streak, judged=self._judged,
                    losses=[loss if math.isfinite(loss) else None for loss in losses])

    def load_state_dict(self, state: dict) -> None:
        """The reverse of `state_dict`; the settings stay those of now."""
        self.position, self.left_out, self.skipped = state['position'], set(state['left_out']), state['skipped']
        self.rollbacks, self.streak, self._judged = state['rollbacks'], list(state['streak']), state['judged']
        losses = [math.nan if loss is None else loss for loss in state['losses']]
        if len(losses) != self.spike_window:  # another window than before: the newest losses that fit
            newest = [losses[(self._judged - 1 - age) % len(losses)] for age in range(len(losses))]
            kept = newest[:self.spike_window][::-1]
            losses, self._judged = kept + [math.nan] * (self.spike_window - len(kept)), len(kept)
        self._losses = losses
        self._pending.clear()

    def _write_down(self, trainer: Any, step: dict) -> None:
        """Every rank calls it with its own rows; the main one writes them all."""
        loss, norm = float(step['loss']), float(step['grad_norm'])
        median = math.nan if step['median'] is None else float(step['median'])
        if not math.isfinite(loss):
            reason = f'the loss is {loss}'
        elif not math.isfinite(norm):
            reason = f'the norm of the gradients is {norm}'
        else:
            reason = f'the loss is {loss:.4g}, over {self.spike_factor:g} times the median {median:.4g}'
        entry = dict(step=step['step'], position=step['position'], reason=reason)
        self.streak.append(entry)
        self.skipped += 1
        own = [dict(rank=trainer.strategy.rank, row=number, loss=_plain(float(row_loss)), samples=ids, sources=sources)
               for number, ((ids, sources), row_loss) in enumerate(zip(step['rows'], step['row_losses']))]
        rows = _rows_of_all_ranks(trainer.strategy, own)
        suspects = [row for row in rows if isinstance(row['loss'], str)] or rows
        names = [name for row in suspects for name in row['samples']]
        logger.warning('%s: step %d is left out: %s; %d bad steps in a row, %d in all; samples: %s%s', trainer.stage,
                       entry['step'], reason, len(self.streak), self.skipped, ', '.join(names[:8]),
                       f' and {len(names) - 8} more ({FILE})' if len(names) > 8 else '')
        self._append(trainer, dict(**entry, loss=_plain(loss), grad_norm=_plain(norm), median=_plain(median),
                                   in_a_row=len(self.streak), skipped=self.skipped, rows=rows))

    @staticmethod
    def _append(trainer: Any, entry: dict) -> None:
        if trainer.strategy.is_main:
            trainer.work_dir.mkdir(parents=True, exist_ok=True)
            with open(trainer.work_dir / FILE, 'a', encoding='utf-8') as file:
                file.write(json.dumps(entry) + '\n')

    @staticmethod
    def _describe(streak: list[dict]) -> str:
        return (f'{len(streak)} bad steps in a row, {streak[0]["step"]} to {streak[-1]["step"]}: '
                f'{streak[0]["reason"]}' + (f', ... {streak[-1]["reason"]}' if len(streak) > 1 else ''))


def build_guard(settings: dict | None, config_key: str = 'guard') -> Guard:
    """The guard that a stage's `guard` asks for; None switches it off.

    Raises:
        ValueError: A key is unknown or a value outside its range.
    """
    if settings is None:
        return Guard(enabled=False)
    known = list(Guard.__init__.__kwdefaults__)
    for key in settings:
        if key not in known:
            raise ValueError(f'{config_key}.{key}: unknown{near_names(key, known)}; known: {", ".join(known)}')
    return Guard(**settings)


def _plain(number: float) -> float | str:
    """A number as JSON has it: 'nan' and 'inf' are words."""
    return number if math.isfinite(number) else str(number)


def _rows_of_all_ranks(strategy: Any, rows: list[dict]) -> list[dict]:
    """Lists of plain data of every rank, joined: they travel as text."""
    text = ''.join(json.dumps(row) + '\n' for row in rows).encode()
    joined, _ = strategy.gather_rows(torch.tensor(list(text), dtype=torch.uint8))
    return [json.loads(line) for line in bytes(joined.tolist()).decode().splitlines()]
