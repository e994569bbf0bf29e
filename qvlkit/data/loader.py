"""Loader: an endless stream of optimizer steps, each a list of packed rows, made in worker processes.

The shuffled order of an epoch is cut into chunks of consecutive samples. A worker takes a chunk, encodes its samples,
packs them into rows and collates each row. What a row holds therefore depends on (seed, epoch, chunk) alone, not on
workers; and the state is three numbers: epoch, chunk, rows of it already given out. Resuming encodes one chunk again,
not what was seen.
"""
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from qvlkit.data.packing import pack
from qvlkit.structures import EncodedSample, PackedBatch, Sample, SampleError
from qvlkit.utils.seeded import seeded


class Chunks(Dataset):
    """(epoch, chunk) -> the packed rows of that chunk, and the samples that could not be used.

    Args:
        dataset: Gives a `Sample` by index.
        encode: Sample -> EncodedSample.
        collate: List of EncodedSample -> PackedBatch.
        row_length: Tokens of a row.
        chunk_size: Samples of a chunk.
        seed: Shuffles each epoch anew; None keeps the dataset's order.
    """

    def __init__(self, dataset: Any, encode: Callable[[Sample], EncodedSample],
                 collate: Callable[[list[EncodedSample]], PackedBatch], *, row_length: int, chunk_size: int,
                 seed: int | None):
        self.dataset, self.encode, self.collate = dataset, encode, collate
        self.row_length, self.chunk_size, self.seed = row_length, chunk_size, seed
        self._epoch, self._order = -1, None

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.chunk_size)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the samples of an epoch, in the order in which they are seen."""
        if self.seed is None:
            return np.arange(len(self.dataset))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, seeded(self.seed, 'order', epoch).permutation(len(self.dataset))
        return self._order

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[PackedBatch], list[SampleError]]:
        epoch, chunk = key
        samples, errors = [], []
        for index in self.order(epoch)[chunk * self.chunk_size:(chunk + 1) * self.chunk_size]:
            try:
                samples.append(self._encode_fitting(self.dataset[int(index)]))
            except SampleError as error:
                errors.append(error)
        rows = pack([sample.length for sample in samples], self.row_length)
        return [self.collate([samples[index] for index in row]) for row in rows], errors

    def _encode_fitting(self, sample: Sample) -> EncodedSample:
        encoded = self.encode(sample)
        if encoded.length > self.row_length:
            raise SampleError(sample.id, f'{encoded.length} tokens do not fit a row of {self.row_length} '
                                         '(loader.row_length); nothing is ever cut', 'too_long')
        if not bool(encoded.is_target[1:].any()):
            raise SampleError(sample.id, 'no token is a target: the conversation has no answer', 'no_target')
        return encoded


class _ChunkKeys:
    """Endless (epoch, chunk) pairs from a starting place on: what the worker processes are asked for."""

    def __init__(self, num_chunks: int, epoch: int, chunk: int):
        self.num_chunks, self.epoch, self.chunk = num_chunks, epoch, chunk

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, chunk = self.epoch, self.chunk
        while True:
            yield epoch, chunk
            chunk += 1
            if chunk >= self.num_chunks:
                epoch, chunk = epoch + 1, 0


class PackedLoader:
    """Iterating gives, for each optimizer step, `accumulation` packed rows.

    Args:
        dataset, encode, collate: As for `Chunks`.
        row_length: Tokens of a row, at most.
        accumulation: Rows of one optimizer step.
        chunk_size: Samples that are packed together; larger chunks fill rows better.
        num_workers: Worker processes; 0 works in this one.
        seed, shuffle: Order of the samples.
        on_error: 'raise' stops at the first sample that cannot be used; 'skip' counts it, writes it to `quarantine`
            and goes on.
        max_errors: With 'skip', stop after this many in one run.
        quarantine: JSONL file for skipped samples.
        pin_memory: Copy batches into page-locked memory, for a GPU.
    """

    def __init__(self, dataset: Any, encode: Callable, collate: Callable, *, row_length: int, accumulation: int = 1,
                 chunk_size: int = 64, num_workers: int = 0, seed: int = 0, shuffle: bool = True,
                 on_error: str = 'raise', max_errors: int = 100, quarantine: Path | str | None = None,
                 pin_memory: bool = False):
        for key, value, low in (('row_length', row_length, 1), ('accumulation', accumulation, 1),
                                ('chunk_size', chunk_size, 1), ('num_workers', num_workers, 0)):
            if not isinstance(value, int) or value < low:
                raise ValueError(f'loader.{key}: expected a whole number of at least {low}, got {value!r}')
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"loader.on_error: expected 'raise' or 'skip', got {on_error!r}")
        if len(dataset) == 0:
            raise ValueError('data: the dataset has no samples')
        self.chunks = Chunks(dataset, encode, collate, row_length=row_length, chunk_size=chunk_size,
                             seed=seed if shuffle else None)
        self.accumulation, self.num_workers, self.pin_memory = accumulation, num_workers, pin_memory
        self.on_error, self.max_errors = on_error, max_errors
        self.quarantine = None if quarantine is None else Path(quarantine)
        self.epoch, self.chunk, self.row = 0, 0, 0
        self.errors: dict[str, int] = {}

    def __iter__(self) -> Iterator[list[PackedBatch]]:
        rows: list[PackedBatch] = []
        for place, row in self._rows():
            rows.append(row)
            if len(rows) == self.accumulation:
                self.epoch, self.chunk, self.row = place
                yield rows
                rows = []

    def _rows(self) -> Iterator[tuple[tuple[int, int, int], PackedBatch]]:
        """Rows from the present place on, each with the place behind it."""
        keys = _ChunkKeys(len(self.chunks), self.epoch, self.chunk)
        workers = {}
        if self.num_workers:
            workers = dict(num_workers=self.num_workers, persistent_workers=True, prefetch_factor=2)
        loader = DataLoader(self.chunks, sampler=keys, batch_size=None, pin_memory=self.pin_memory,
                            collate_fn=_identity, generator=torch.Generator(), **workers)
        skip, fruitless = self.row, 0
        for (epoch, chunk), (rows, errors) in zip(keys, loader):
            if not skip:  # else the chunk's errors are already counted in the state
                self._count(errors)
            fruitless = 0 if rows else fruitless + 1
            if fruitless >= len(self.chunks):
                raise ValueError(f'data: no usable sample in a whole epoch; skipped: {self.errors}')
            for index, row in enumerate(rows):
                if index >= skip:
                    yield (epoch, chunk, index + 1), row
            skip = 0

    def _count(self, errors: list[SampleError]) -> None:
        if not errors:
            return
        if self.on_error == 'raise':
            raise errors[0]
        for error in errors:
            self.errors[error.kind] = self.errors.get(error.kind, 0) + 1
            if self.quarantine is not None:
                self.quarantine.parent.mkdir(parents=True, exist_ok=True)
                with self.quarantine.open('a', encoding='utf-8') as file:
                    file.write(json.dumps(dict(sample=error.sample_id, kind=error.kind, reason=error.reason)) + '\n')
        if sum(self.errors.values()) > self.max_errors:
            raise ValueError(f'data: more than {self.max_errors} samples cannot be used (loader.max_errors): '
                             f'{self.errors}; the last: {errors[-1]}')

    def state_dict(self) -> dict:
        """Where the next step begins, and what was skipped."""
        return dict(epoch=self.epoch, chunk=self.chunk, row=self.row, errors=dict(self.errors), **self._fingerprint())

    def load_state_dict(self, state: dict) -> None:
        """Go on where `state` was taken; ValueError if the data or its packing have changed since."""
        for key, value in self._fingerprint().items():
            if state.get(key) != value:
                raise ValueError(f'resume: {key} was {state.get(key)} when the run stopped and is {value} now')
        self.epoch, self.chunk, self.row = state['epoch'], state['chunk'], state['row']
        self.errors = dict(state['errors'])

    def _fingerprint(self) -> dict:
        chunks = self.chunks
        return dict(num_samples=len(chunks.dataset), chunk_size=chunks.chunk_size, row_length=chunks.row_length,
                    seed=chunks.seed)


def _identity(item: Any) -> Any:
    return item
