"""Loader: optimizer steps, each a list of packed rows, planned from lengths and encoded in worker processes.

    sampler -> planner (one process) -> rows -> workers: decode, encode, collate -> steps

The state is that of the planner at the start of the present window, and the steps of it already given out. A resume
plans that window again, which decodes nothing, and goes on behind those steps. A sample that turns out to be broken
when it is decoded is replaced by one of the same source that fits its place, chosen by the seed and the sample alone.
"""
import json
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from qvlkit.data.datasets.mixture import Mixture, as_mixture
from qvlkit.data.planner import Placed, Planner, Window, drawn_sample
from qvlkit.data.sampler import replacements, same_mixture
from qvlkit.registry import near_names
from qvlkit.structures import EncodedSample, Measure, PackedBatch, SampleError

REPLACEMENT_TRIES = 8
FEW_ERRORS = 10  # so many never stop a run, whatever their share


class _Place(NamedTuple):
    """Where a row stands: number of its window since the pipeline began, step in it, row of the step, rows of it."""
    window: int
    step: int
    row: int
    rows: int


class Rows(Dataset):
    """A planned row -> its batch (None if nothing of it can be used), and the samples that could not be used.

    Args:
        mixture, processor, seed: As for `PackedLoader`.
        collate: List of EncodedSample -> PackedBatch.
    """

    def __init__(self, mixture: Mixture, processor: Any, collate: Callable[[list[EncodedSample]], PackedBatch], *,
                 seed: int):
        self.mixture, self.processor, self.collate, self.seed = mixture, processor, collate, seed

    def __getitem__(self, task: tuple[_Place, list[Placed]]) -> tuple[_Place, PackedBatch | None, list[SampleError]]:
        place, row = task
        samples, errors = [], []
        for placed in row:
            try:
                samples.append(self._encoded(placed))
            except SampleError as error:
                error.source = self.mixture.sources[placed.draw.source].name
                errors.append(error)
                samples += self._replacement(placed)
        return place, self.collate(samples) if samples else None, errors

    def _encoded(self, placed: Placed) -> EncodedSample:
        sample = drawn_sample(placed.draw, self.mixture, self.processor, placed.shrink)
        encoded = self.processor.encode(sample, epoch=placed.draw.epoch)
        if encoded.length != placed.length:
            raise SampleError(sample.id, f'has {encoded.length} tokens and was planned with {placed.length}: the data '
                              'or its index have changed', 'length_changed')
        return encoded

    def _replacement(self, placed: Placed) -> list[EncodedSample]:
        """One sample that takes the place of a broken one, or none."""
        for draw in replacements(placed.draw, self.mixture, seed=self.seed, tries=REPLACEMENT_TRIES):
            try:
                measure = self.processor.measure(drawn_sample(draw, self.mixture, self.processor), epoch=draw.epoch)
                if measure.num_targets and measure.length <= placed.length:
                    return [self._encoded(Placed(draw, measure.length))]
            except SampleError:
                continue
        return []


class _Windows(IterableDataset):
    """The planner's windows, for a process of its own."""

    def __init__(self, planner: Planner):
        self.planner = planner

    def __iter__(self) -> Iterator[Window]:
        return iter(self.planner)


class PackedLoader:
    """Iterating gives, for each optimizer step, `accumulation` packed rows; it ends where the data ends.

    Args:
        dataset: A `Mixture`, or any dataset of Samples, which is then a mixture of one.
        processor: Encodes and measures samples.
        collate: List of EncodedSample -> PackedBatch.
        cost: Measure -> cost of a sample in a training step, by which rows are evened out; its tokens if None.
        row_length: Tokens of a row, at most.
        accumulation: Rows of one optimizer step.
        window: Samples that are planned together, at least; larger windows fill rows better and make them more even.
        num_workers: Worker processes that encode; 0 works in this one.
        seed: Of order, packing, augmentation and replacement.
        shuffle: Whether a dataset that is no mixture is shuffled.
        on_error: 'raise' stops at the first sample that cannot be used; 'skip' counts it, writes it to `quarantine`
            and goes on.
        max_bad_share: With 'skip', stop when more than this share of the samples (and more than 10) are bad.
        max_bad_in_a_row: With 'skip', stop when so many of one source are bad and none between them is good.
        quarantine: JSONL file for skipped samples. What planning shows, the first rank writes; what only shows when a
            row is encoded, its own rank writes, the others into `quarantine.rank1.jsonl` and so on.
        pin_memory: Copy batches into page-locked memory, for a GPU.
        rank, world_size: Which rows of each step are this process's own. With several ranks a step of which no row can
            be used here is an empty list, so that all ranks make the same steps.
    """

    def __init__(self, dataset: Any, processor: Any, collate: Callable, *,
                 cost: Callable[[Measure], float] | None = None, row_length: int, accumulation: int = 1,
                 window: int = 256, num_workers: int = 0, seed: int = 0, shuffle: bool = True, on_error: str = 'raise',
                 max_bad_share: float = 0.01, max_bad_in_a_row: int = 100, quarantine: Path | str | None = None,
                 pin_memory: bool = False, rank: int = 0, world_size: int = 1):
        for key, value, low in (('row_length', row_length, 1), ('accumulation', accumulation, 1),
                                ('window', window, 1), ('num_workers', num_workers, 0),
                                ('max_bad_in_a_row', max_bad_in_a_row, 1)):
            if not isinstance(value, int) or value < low:
                raise ValueError(f'loader.{key}: expected a whole number of at least {low}, got {value!r}')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"loader.on_error: expected 'raise' or 'skip', got {on_error!r}"
                             f'{near_names(on_error, ["raise", "skip"])}')
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f'loader.max_bad_share: expected 0 to 1, got {max_bad_share!r}')
        if len(dataset) == 0:
            raise ValueError('data: the dataset has no samples')
        if not shuffle and isinstance(dataset, Mixture) and any(
                source.order != 'sequential' for source in dataset.sources):
            raise ValueError("loader.shuffle: the data are a mixture; say order='sequential' of its parts instead")
        self.mixture = as_mixture(dataset, 'shuffle' if shuffle else 'sequential')
        self.processor = processor
        self.rows = Rows(self.mixture, processor, collate, seed=seed)
        self.settings = dict(row_length=row_length, window=window, accumulation=accumulation, rank=rank,
                             world_size=world_size, seed=seed)
        self.cost, self.num_workers, self.pin_memory = cost, num_workers, pin_memory
        self.on_error, self.max_bad_share, self.max_bad_in_a_row = on_error, max_bad_share, max_bad_in_a_row
        self.quarantine = None if quarantine is None else Path(quarantine)
        if quarantine is not None and rank:
            self.quarantine = self.quarantine.with_suffix(f'.rank{rank}{self.quarantine.suffix}')
        self.errors: dict[str, int] = {}
        self.left_out = 0  # samples that were longer than a row, of sources that leave such out
        self._bad_ids: dict[str, None] = {}
        self._seen, self._streaks = 0, {}
        self._start, self._step, self._key = self.planner().state_dict(), 0, ''
        self._weights: dict[str, float] = {}

    @property
    def dataset(self) -> Mixture:
        """What is drawn from."""
        return self.mixture

    def once(self) -> 'PackedLoader':
        """Another loader of the same samples, each once and in order, in rows of the same length."""
        parts = {source.name: dict(dataset=source.dataset, weight=len(source.dataset), order='sequential', epochs=1,
                                   oversize=source.oversize, limits=source.limits) for source in self.mixture.sources}
        return PackedLoader(Mixture(parts), self.processor, self.rows.collate, cost=self.cost,
                            num_workers=self.num_workers, pin_memory=self.pin_memory, on_error=self.on_error,
                            max_bad_share=self.max_bad_share, max_bad_in_a_row=self.max_bad_in_a_row,
                            **{**self.settings, 'accumulation': 1})

    def planner(self) -> Planner:
        """A planner as it is before the first window."""
        return Planner(self.mixture, self.processor, self.cost, **self.settings)

    def set_weights(self, weights: dict[str, float]) -> None:
        """Give parts of the mixture, named by their path, other weights from the next window on."""
        self.planner().sampler.set_weights(weights)  # checks
        self._weights.update(weights)

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        while True:
            yield from self._until_weights_change()
            if not self._weights:
                return
            planner = self.planner()
            planner.load_state_dict(self._start)
            planner.sampler.set_weights(self._weights)
            self._start, self._weights = planner.state_dict(), {}

    def _until_weights_change(self) -> Iterator[list[PackedBatch]]:
        """Steps until the data ends, or until a window ends and weights are to change."""
        begun: deque[tuple[Window, int]] = deque()
        workers = {}
        if self.num_workers:
            workers = dict(num_workers=self.num_workers, prefetch_factor=2)
        results = DataLoader(self.rows, sampler=_Tasks(self._tasks(begun)), batch_size=None, collate_fn=_identity,
                             pin_memory=self.pin_memory, generator=torch.Generator(), **workers)
        current, batches, errors = -1, [], []
        for place, batch, bad in results:
            while current < place.window:
                current += 1
                self._begin(*begun.popleft())
            errors += bad
            batches += [] if batch is None else [batch]
            if place.row + 1 < place.rows:
                continue
            self._count(errors)
            self._step = place.step + 1
            for batch in batches:
                self._streaks = {source: count for source, count in self._streaks.items()
                                 if source not in batch.sources}
            window_ends = self._step == self._num_steps
            if window_ends:
                self._start, self._step, self._key = self._end_state, 0, ''
            if batches or self.settings['world_size'] > 1:
                yield batches
            batches, errors = [], []
            if window_ends and self._weights:
                return
        while begun:
            self._begin(*begun.popleft())
        if self._fruitless > len(self.mixture):
            raise ValueError(f'data: no usable sample in a whole epoch; skipped: {self.errors}')

    def _tasks(self, begun: deque) -> Iterator[tuple[_Place, list[Placed]]]:
        """Rows of one window after another, from the present place on; `begun` receives each window."""
        planner = self.planner()
        planner.load_state_dict(self._start)
        if self.num_workers:
            windows: Any = DataLoader(_Windows(planner), batch_size=None, num_workers=1, prefetch_factor=1,
                                      collate_fn=_identity, generator=torch.Generator())
        else:
            windows = planner
        skip, key, self._fruitless = self._step, self._key, 0
        for number, window in enumerate(windows):
            if skip and window.key != key:
                new = [str(error) for error in window.errors if error.sample_id not in self._bad_ids]
                raise ValueError('resume: the samples of the present window are not those of the run that stopped: the '
                                 'data have changed, or a sample that could be read then cannot be read now'
                                 + (f' ({new[0]})' if new else ''))
            begun.append((window, skip))
            for step, rows in enumerate(window.steps[skip:], start=skip):
                for row, placed in enumerate(rows):
                    yield _Place(number, step, row, len(rows)), placed
            self._fruitless = 0 if window.steps else self._fruitless + window.num_samples
            if self._fruitless > len(self.mixture):
                return
            skip = 0

    def _begin(self, window: Window, skip: int) -> None:
        """A window's first row has come: book what planning it has shown, unless that was done before the resume."""
        self._end_state, self._num_steps, self._key = window.state, len(window.steps), window.key
        if not skip:
            self._seen += window.num_samples
            self.left_out += window.left_out
            self._count(window.errors, every_rank=True)
        if not window.steps:  # only errors: nothing of it will be given out
            self._start, self._step, self._key = window.state, 0, ''

    def _count(self, errors: list[SampleError], every_rank: bool = False) -> None:
        """Book bad samples, each once; raise where they are not to be skipped, or where they are too many.

        `every_rank` says that every rank meets these, so that one writes them down.
        """
        for error in errors:
            if self.on_error == 'raise':
                raise error
            source = error.source
            self._streaks[source] = 1 if error.after_good else self._streaks.get(source, 0) + 1
            if error.sample_id not in self._bad_ids:
                self._bad_ids[error.sample_id] = None
                self.errors[error.kind] = self.errors.get(error.kind, 0) + 1
                if not every_rank or self.settings['rank'] == 0:
                    self._write_quarantine(error, source)
            if self._streaks[source] >= self.max_bad_in_a_row:
                raise ValueError(f'data: {self._streaks[source]} samples of {source!r} in a row cannot be used '
                                 f'(loader.max_bad_in_a_row): {self.errors}; the last: {error}')
        bad = len(self._bad_ids)
        if errors and bad > FEW_ERRORS and bad > self.max_bad_share * self._seen:
            raise ValueError(f'data: {bad} of {self._seen} samples cannot be used, more than {self.max_bad_share:.1%} '
                             f'(loader.max_bad_share): {self.errors}; the last: {errors[-1]}')

    def _write_quarantine(self, error: SampleError, source: str) -> None:
        if self.quarantine is not None:
            self.quarantine.parent.mkdir(parents=True, exist_ok=True)
            with self.quarantine.open('a', encoding='utf-8') as file:
                file.write(json.dumps(dict(sample=error.sample_id, source=source, kind=error.kind,
                                           reason=error.reason)) + '\n')

    def state_dict(self) -> dict:
        """Where the next step begins, and what was skipped."""
        return dict(start=self._start, step=self._step, key=self._key, weights=dict(self._weights),
                    errors=dict(self.errors), left_out=self.left_out, bad_ids=list(self._bad_ids), seen=self._seen,
                    streaks=dict(self._streaks), **self._fingerprint())

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken; ValueError if the data or its packing have changed since."""
        for key, value in self._fingerprint().items():
            if state.get(key) != value:
                raise ValueError(f'resume: {key} was {state.get(key)} when the run stopped and is {value} now')
        self._start, self._step, self._key = state['start'], state['step'], state['key']
        self._weights, self.errors, self._seen = dict(state['weights']), dict(state['errors']), state['seen']
        self.left_out = state['left_out']
        self._bad_ids, self._streaks = dict.fromkeys(state['bad_ids']), dict(state['streaks'])

    def _fingerprint(self) -> dict:
        rows = self.settings['accumulation'] * self.settings['world_size']
        mixture = json.loads(json.dumps(same_mixture(self.mixture)))  # as it comes back from a checkpoint
        return dict(**mixture, rows_per_step=rows,
                    **{key: self.settings[key] for key in ('window', 'row_length', 'seed')})


class _Tasks:
    """A sampler for torch's DataLoader around an iterator that is used once."""

    def __init__(self, tasks: Iterator):
        self.tasks = tasks

    def __iter__(self) -> Iterator:
        return self.tasks


def _identity(item: Any) -> Any:
    return item
