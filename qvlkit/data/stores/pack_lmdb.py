"""Pack a dataset and its media into an LMDB store; lmdb.py describes the layout.

Records are written in transactions of a few thousand, each together with the place in the source that it reaches. After
a kill the store therefore holds whole transactions, and packing again goes on behind the last. index.json is written
last, by a rename: without it a store is unfinished and does not open. A record that cannot be used goes to
quarantine.jsonl, with the reason, and is left out.
"""
import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.stores.interface import StoreError
from qvlkit.data.stores.lmdb import (
    DIGEST,
    KINDS,
    MEDIA_COLUMNS,
    SCHEMA,
    import_lmdb,
    read_index,
    record_key,
    record_value,
)
from qvlkit.data.stores.measure import MeasureVideo, measure_medium
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import MediaSize, Sample, SampleError, SampleSizes

MAX_MEDIUM_BYTES = 2 ** 31  # below LMDB's own limit of 4 GiB for a value
PROGRESS = b'progress'
_COLUMNS = dict(text_tokens='i', num_targets='i', offsets='q', kind='B', width='i', height='i', frames='i', seconds='d')


@dataclass(frozen=True)
class Packed:
    """What packing came to: records in the store, records left out, media (each once), bytes of data.mdb."""
    count: int
    quarantined: int
    media: int
    bytes: int


def pack(dataset: Any, folder: str | Path, *, measure: Callable[[Sample], tuple[int, int] | None] | None = None,
         measure_video: MeasureVideo | None = None, text_key: str = '', map_bytes: int = 2 ** 30,
         batch_records: int = 1000, batch_bytes: int = 64 * 2 ** 20,
         progress: Callable[[int, int], None] | None = None) -> Packed:
    """Write the records of `dataset` and their media into `folder`, or go on where an interrupted call stopped.

    Args:
        dataset: Samples that stand on a store, such as a ConversationDataset.
        folder: Where to; a new or empty folder, or one that the same packing has begun or finished.
        measure: Sample -> (text tokens, targets), or None where they are not fixed, for `sizes()`; without it sizes are
            not known.
        measure_video: Encoded video -> its MediaSize, or None if that is not known.
        text_key: Names the tokenizer and the template that `measure` counts with.
        map_bytes: First size of the memory map; it is doubled when it is full.
        batch_records, batch_bytes: A transaction ends at either.
        progress: Called with (records done, records in all) after each record.

    Raises:
        ValueError: The dataset stands on no store, holds no usable record, or `folder` is not writable, is used by
            another process, holds something else, or was begun from another source.
    """
    if not hasattr(dataset, 'store') or not hasattr(dataset, 'read'):
        raise ValueError(f'pack: expected a dataset that stands on a store, such as ConversationDataset; '
                         f'{type(dataset).__name__} has no records to pack')
    if (measure is None) != (not text_key):
        raise ValueError(f'pack: measure and text_key belong together, got text_key={text_key!r} and measure={measure}')
    folder, source = Path(folder).expanduser(), _source(dataset, text_key)
    if (folder / 'index.json').exists():
        index = read_index(folder)
        _same_source(folder, index['source'], source)
        return _packed(index)
    with _alone(folder):
        writer = _Writer(folder, source, map_bytes)
        try:
            for index in range(writer.state['next'], len(dataset)):
                try:
                    writer.add(*_read(dataset, index, measure, measure_video, text_key))
                except SampleError as error:
                    writer.refuse(error)
                if len(writer.records) >= batch_records or writer.waiting >= batch_bytes:
                    writer.commit(index + 1)
                if progress is not None:
                    progress(index + 1, len(dataset))
            writer.commit(len(dataset))
            if not writer.state['count']:
                raise ValueError(f'pack: no record of {dataset.name!r} can be used; the reasons are in '
                                 f'{str(folder / "quarantine.jsonl")!r}')
            return writer.finish(dataset.reading, text_key)
        finally:
            writer.close()


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """What the disk refuses is told as an error of the store."""
    try:
        yield
    except import_lmdb().Error as error:
        raise StoreError(folder, f'LMDB cannot write: {error}', 'not_writable') from error
    except OSError as error:
        raise StoreError(folder, f'cannot be written: {error.strerror or error}', 'not_writable') from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The folder exists, holds nothing strange, and no other process packs into it."""
    with _disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        strange = [path.name for path in folder.iterdir() if path.name not in (
            'data.mdb', 'lock.mdb', 'pack.lock', 'quarantine.jsonl', 'sizes.safetensors', 'sizes.safetensors.tmp',
            'index.json.tmp')]
        if strange:
            raise StoreError(folder, f'is not empty and not a store that pack_lmdb has begun: it holds {strange[0]!r}')
        lock = open(folder / 'pack.lock', 'w')
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
        except BlockingIOError:
            raise StoreError(folder, 'another process is packing into it', 'busy') from None
        yield


class _Writer:
    """Gathers records, writes them in transactions, and finishes the store."""

    def __init__(self, folder: Path, source: dict, map_bytes: int):
        self.folder, self.lmdb = folder, import_lmdb()
        self.state = dict(next=0, count=0, quarantined=0, quarantine_bytes=0, source=source)
        with _disk_errors(folder):
            data = folder / 'data.mdb'
            have = data.stat().st_size if data.exists() else 0
            self.environment = self.lmdb.open(str(folder), map_size=max(map_bytes, have), max_dbs=0)
            with self.environment.begin() as transaction:
                found = transaction.get(PROGRESS)
            if found is not None:
                self.state = json.loads(found)
                _same_source(folder, self.state['source'], source)
            self.quarantine = open(folder / 'quarantine.jsonl', 'ab')
            self.quarantine.truncate(self.state['quarantine_bytes'])  # lines behind the last transaction come again
        self.records: list[bytes] = []
        self.media: dict[str, bytes] = {}
        self.waiting = 0  # bytes gathered

    def add(self, header: dict, media: dict[str, bytes]) -> None:
        """Gather a record and its media."""
        self.records.append(record_value(header))
        self.waiting += len(self.records[-1])
        for digest, data in media.items():
            if digest not in self.media:
                self.media[digest] = data
                self.waiting += len(data)

    def refuse(self, error: SampleError) -> None:
        """Write why a record is left out."""
        line = json.dumps(dict(sample=error.sample_id, kind=error.kind, reason=error.reason)) + '\n'
        self.quarantine.write(line.encode('utf-8', 'surrogatepass'))
        self.state['quarantined'] += 1

    def commit(self, reached: int) -> None:
        """Write what is gathered, and that the source is read up to `reached`, in one transaction."""
        with _disk_errors(self.folder):
            self.quarantine.flush()
            os.fsync(self.quarantine.fileno())
            state = {**self.state, 'next': reached, 'count': self.state['count'] + len(self.records),
                     'quarantine_bytes': self.quarantine.tell()}
            while not self._write(state):
                self.environment.set_mapsize(2 * self.environment.info()['map_size'])
        self.state, self.records, self.media, self.waiting = state, [], {}, 0

    def _write(self, state: dict) -> bool:
        """False if the map is full: nothing is written then."""
        try:
            with self.environment.begin(write=True) as transaction:
                for digest, data in self.media.items():
                    transaction.put(digest.encode(), data, overwrite=False)
                for index, value in enumerate(self.records, start=self.state['count']):
                    transaction.put(record_key(index), value)
                transaction.put(PROGRESS, json.dumps(state).encode())
        except self.lmdb.MapFullError:
            return False
        return True

    def finish(self, reading: dict, text_key: str) -> Packed:
        """Gather the sizes from all records, also those of an earlier call, and write what makes the store whole."""
        from safetensors.numpy import save
        with _disk_errors(self.folder):
            arrays, fingerprint = self._scan()
            media = self.environment.stat()['entries'] - self.state['count'] - 1
            self.close()
            sizes = save(arrays)
            _replace(self.folder / 'sizes.safetensors', sizes)
            index = dict(schema=SCHEMA, count=self.state['count'], bytes=(self.folder / 'data.mdb').stat().st_size,
                         fingerprint=fingerprint, text_key=text_key, media=media,
                         quarantined=self.state['quarantined'], sizes_sha256=hashlib.sha256(sizes).hexdigest(),
                         reading=reading, source=self.state['source'])
            for name in ('lock.mdb', 'pack.lock'):
                (self.folder / name).unlink(missing_ok=True)
            _replace(self.folder / 'index.json', (json.dumps(index, indent=2) + '\n').encode())
        return _packed(index)

    def _scan(self) -> tuple[dict[str, np.ndarray], str]:
        """The arrays of sizes.safetensors, and the fingerprint."""
        whole = hashlib.sha256()
        arrays = {name: array(code) for name, code in _COLUMNS.items()}
        arrays['offsets'].append(0)
        with self.environment.begin(buffers=True) as transaction:
            for index in range(self.state['count']):
                value = transaction.get(record_key(index))
                whole.update(value[:DIGEST])
                sizes = json.loads(bytes(value[DIGEST:]))['sizes']
                arrays['text_tokens'].append(sizes['text_tokens'] if sizes else -1)
                arrays['num_targets'].append(sizes['num_targets'] if sizes else 0)
                for row in sizes['media'] if sizes else []:
                    for name, item in zip(MEDIA_COLUMNS, row):
                        arrays[name].append(item)
                arrays['offsets'].append(len(arrays['kind']))
        return {name: np.array(column) for name, column in arrays.items()}, whole.hexdigest()

    def close(self) -> None:
        self.quarantine.close()
        self.environment.close()


def _read(dataset: Any, index: int, measure: Any, measure_video: Any, text_key: str) -> tuple[dict, dict[str, bytes]]:
    """One record -> its header, and its media by SHA-256."""
    sample_id = dataset.store.record_id(index)
    found: dict[str, bytes] = {}

    def resolve(text: str) -> bytes:
        if text not in found:
            found[text] = _read_bytes(dataset.store.resolve(index, text))
        return found[text]

    try:
        sample = dataset.read(index, resolve)
        sizes = _sizes(sample, measure, measure_video, text_key)
    except MediaError as error:
        raise SampleError(sample_id, error.reason, error.kind) from error
    record = dataset.store.record(index)
    record, found = _without_data_uris(record, found)
    digests = {text: hashlib.sha256(data).hexdigest() for text, data in found.items()}
    header = dict(id=sample_id, record=record, media=digests, sizes=sizes)
    try:
        json.dumps(record)
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(sample_id, f'the record cannot be written as JSON: {error}', 'wrong_type') from error
    return header, {digests[text]: data for text, data in found.items()}


def _read_bytes(source: Path | bytes) -> bytes:
    if not isinstance(source, Path):
        return source
    try:
        if (size := source.stat().st_size) > MAX_MEDIUM_BYTES:
            raise MediaError(f'{str(source)!r} has {size:,} bytes, limit {MAX_MEDIUM_BYTES:,}', 'too_large')
        return source.read_bytes()
    except OSError as error:
        raise MediaError(f'{str(source)!r} cannot be read: {error}', 'missing_media') from error


def _without_data_uris(record: dict, found: dict[str, bytes]) -> tuple[dict, dict[str, bytes]]:
    """The record with a short reference in place of each data URI that was read, so that its bytes are kept once."""
    short = {text: f'packed:{number}' for number, text in enumerate(found) if text.startswith('data:')}
    if not short:
        return record, found

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return short.get(value, value) if isinstance(value, str) else value

    return plain(record), {short.get(text, text): data for text, data in found.items()}


def _sizes(sample: Sample, measure: Any, measure_video: Any, text_key: str) -> dict | None:
    """What `sizes()` will tell, or None if something is not known. A picture that has no header is an error anyway."""
    media = [measure_medium(medium, measure_video) for medium in sample.media()]
    counts = measure(sample) if measure is not None and None not in media else None
    if counts is None:
        return None
    sizes = SampleSizes(*counts, tuple(media), text_key)
    return dict(text_tokens=sizes.text_tokens, num_targets=sizes.num_targets, media=[_row(size) for size in media])


def _row(size: MediaSize) -> list:
    values = asdict(size)
    return [KINDS.index(values.pop('kind')), *values.values()]


def _source(dataset: Any, text_key: str) -> dict:
    """What a packing that goes on must have in common with the one that began."""
    store = dataset.store
    paths = getattr(store, 'files', None) or [Path(getattr(store, 'path', store.name))]
    files = [[path.name, path.stat().st_size if path.is_file() else 0] for path in paths]
    return dict(store=type(store).__name__, files=files, samples=len(dataset), text_key=text_key,
                format=dataset.format, boxes=dataset.boxes)


def _same_source(folder: Path, before: dict, now: dict) -> None:
    for key, value in now.items():
        if before.get(key) != value:
            raise StoreError(folder, f'was packed from another source: {key} was {before.get(key)!r:.200} and is '
                             f'{value!r:.200} now; choose another folder, or remove it', 'other_source')


def _packed(index: dict) -> Packed:
    return Packed(index['count'], index['quarantined'], index['media'], index['bytes'])


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    partial = path.with_name(path.name + '.tmp')
    with open(partial, 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    handle = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
