"""LMDB store: records and their media in one memory-mapped file, read at random as fast as the disk allows.

A store is a folder, written once by pack_lmdb.py and then only read:

    data.mdb            b'0000000007' (ten digits, the index)   -> 32 bytes of SHA-256, then a JSON header
                        64 hex digits, a medium's SHA-256       -> the medium's bytes as they were, each stored once
                        b'progress'                             -> JSON: how far the writer has come
    sizes.safetensors   text_tokens, num_targets (count,); offsets (count + 1,) into the media's
                        kind (0 image, 1 video, 2 frames), width, height, frames, seconds; text_tokens -1: unknown
    index.json          schema, count, bytes of data.mdb, fingerprint, text_key, ...; written last
    quarantine.jsonl    records that could not be packed

A header is {"id": where it came from, "record": the record as it was, "media": {reference in the record: SHA-256},
"sizes": ...}. A record is checked against the digest in front of it and a medium against its key, so no flipped bit
passes; the fingerprint is the SHA-256 of all records' digests. The file's size is compared with what its own pages say
before it is mapped: to read behind the end of a cut file would kill the process (SIGBUS).
"""
import hashlib
import json
import os
import struct
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.stores.interface import StoreError, check_index, needs
from qvlkit.data.transforms.load_media import MediaError, decode_data_uri
from qvlkit.registry import STORES
from qvlkit.structures import MediaSize, SampleError, SampleSizes

SCHEMA = 1
KINDS = ('image', 'video', 'frames')
MEDIA_COLUMNS = ('kind', 'width', 'height', 'frames', 'seconds')
DIGEST = 32  # bytes in front of a record's header
_MAGIC, _VERSION = 0xBEEFC0DE, 1  # of LMDB's meta pages
_lock = threading.Lock()
_shared: 'weakref.WeakValueDictionary[str, _Environment]' = weakref.WeakValueDictionary()


@STORES.register_module()
class LMDBStore:
    """A folder written by `qvlkit pack_lmdb`.

    Args:
        path: The folder.

    Raises:
        ValueError: lmdb is not installed, or the folder is missing, unfinished, cut or broken (StoreError).
    """

    def __init__(self, path: str | Path):
        import_lmdb()
        self.path = Path(path).expanduser()
        self.name = self.path.resolve().stem
        self.index = read_index(self.path)
        check_file(self.path / 'data.mdb', self.index['bytes'])
        self.close()
        self._get(b'progress')  # opens it, so that a broken file is told now

    def __len__(self) -> int:
        return self.index['count']

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_environment': None, '_sizes': None, '_last': (-1, {})}

    @property
    def reading(self) -> dict:
        """How its records are read: 'format', and 'names' where the source renamed its columns."""
        return self.index.get('reading') or {}

    def record_id(self, index: int) -> str:
        return f'{self.path.resolve().name}[{index}]'

    def record(self, index: int) -> dict:
        return self._header(index)['record']

    def resolve(self, index: int, text: str) -> Path | bytes:
        media = self._last[1] if self._last[0] == index else self._header(index)['media']
        digest = media.get(text) if isinstance(text, str) else None
        if not isinstance(digest, str):
            if isinstance(text, str) and text.startswith('data:'):
                return decode_data_uri(text)
            raise MediaError(f'{text!r:.200} was not packed with this record, which has '
                             f'{", ".join(map(repr, media)) or "no media":.300}', 'missing_media')
        try:
            data = self._get(digest.encode())
        except SampleError as error:
            raise MediaError(f'{text!r:.200}: {error.reason}', error.kind) from error
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            what = 'is missing from the store' if data is None else 'has changed since it was packed'
            raise MediaError(f'medium {text!r:.200} ({digest[:12]}...) {what}', 'corrupt_record')
        return data

    def sizes(self, index: int) -> SampleSizes | None:
        check_index(index, len(self), self.name)
        if self._sizes is None:
            self._sizes = read_sizes(self.path, self.index)
        table = self._sizes
        if table['text_tokens'][index] < 0:
            return None
        rows = range(int(table['offsets'][index]), int(table['offsets'][index + 1]))
        media = tuple(MediaSize(KINDS[int(table['kind'][row])], int(table['width'][row]), int(table['height'][row]),
                                int(table['frames'][row]), float(table['seconds'][row])) for row in rows)
        return SampleSizes(int(table['text_tokens'][index]), int(table['num_targets'][index]), media,
                           self.index['text_key'])

    def close(self) -> None:
        self._environment: _Environment | None = None  # the last store that lets go of it closes it
        self._sizes: dict | None = None
        self._last: tuple[int, dict] = (-1, {})

    def _header(self, index: int) -> dict:
        """A record's checked header."""
        check_index(index, len(self), self.name)
        value = self._get(record_key(index), index)
        if value is None:
            raise SampleError(self.record_id(index), 'its key is missing from the store', 'corrupt_record')
        if hashlib.sha256(value[DIGEST:]).digest() != value[:DIGEST]:
            raise SampleError(self.record_id(index), 'the record has changed since it was packed (its SHA-256 differs)',
                              'corrupt_record')
        try:
            header = json.loads(value[DIGEST:])
            whole = isinstance(header['record'], dict) and isinstance(header['media'], dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            whole = False
        if not whole:
            raise SampleError(self.record_id(index), "expected a header with 'record' and 'media'", 'corrupt_record')
        self._last = (index, header['media'])
        return header

    def _get(self, key: bytes, index: int | None = None) -> bytes | None:
        import lmdb
        if self._environment is None or self._environment.pid != os.getpid():
            self._environment = _open(self.path, self.index['bytes'])
        try:
            with self._environment.handle.begin() as transaction:
                return transaction.get(key)
        except lmdb.Error as error:
            name = self.name if index is None else self.record_id(index)
            raise SampleError(name, f'LMDB cannot read the page: {error}', 'corrupt_record') from error


class _Environment:
    """An open LMDB file. LMDB allows one for each file and process, so the stores of a process share it."""

    def __init__(self, handle: Any, size: int):
        self.handle, self.size, self.pid = handle, size, os.getpid()


def _open(folder: Path, size: int) -> _Environment:
    lmdb = import_lmdb()
    name = str(folder.resolve())
    with _lock:
        found = _shared.get(name)
        if found is not None and found.pid == os.getpid() and found.size == size:
            return found
        if found is not None:  # inherited by a fork, or of a file that has been replaced
            found.handle.close()
        check_file(folder / 'data.mdb', size)
        try:
            handle = lmdb.open(name, readonly=True, lock=False, readahead=False, map_size=1, create=False, max_dbs=0)
        except lmdb.Error as error:
            raise StoreError(folder, f'LMDB cannot open data.mdb: {error}') from error
        opened = _shared[name] = _Environment(handle, size)
        return opened


def import_lmdb() -> Any:
    """The lmdb package; ValueError if it is absent, or so old that a broken file crashes it."""
    try:
        import lmdb
    except ImportError as error:
        raise needs('lmdb', 'LMDBStore', error) from error
    version = tuple(int(part) for part in lmdb.__version__.split('.')[:3] if part.isdigit())
    if version < (2, 1, 1):
        raise ValueError(f'LMDBStore needs lmdb>=2.1.1, which is hardened against broken files; found '
                         f'{lmdb.__version__}')
    return lmdb


def record_key(index: int) -> bytes:
    """The key of a record: ten digits, so that keys sort as numbers do."""
    return b'%010d' % index


def record_value(header: dict) -> bytes:
    """A record's header with its digest in front."""
    data = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode('utf-8', 'surrogatepass')
    return hashlib.sha256(data).digest() + data


def read_index(folder: Path) -> dict:
    """A store's index.json; StoreError if it is missing or not ours."""
    if not folder.is_dir():
        raise StoreError(folder, 'is a file, expected a folder' if folder.exists() else 'does not exist', 'missing')
    try:
        index = json.loads((folder / 'index.json').read_text(encoding='utf-8'))
    except FileNotFoundError:
        what = 'has no index.json: its packing is unfinished; run pack_lmdb again, which goes on where it stopped'
        raise StoreError(folder, what, 'unfinished') from None
    except (ValueError, RecursionError, OSError) as error:
        raise StoreError(folder, f'index.json cannot be read: {error}') from error
    if not isinstance(index, dict) or index.get('schema') != SCHEMA:
        found = index.get('schema') if isinstance(index, dict) else index
        raise StoreError(folder, f'index.json: expected schema {SCHEMA}, got {found!r:.100}')
    for key, kind in (('count', int), ('bytes', int), ('fingerprint', str), ('text_key', str), ('sizes_sha256', str)):
        if type(index.get(key)) is not kind or (kind is int and index[key] < 0):
            raise StoreError(folder, f'index.json: {key}: expected {kind.__name__}, got {index.get(key)!r:.100}')
    return index


def check_file(path: Path, expected: int) -> None:
    """StoreError unless data.mdb has the size that index.json and its own meta pages tell. Maps nothing."""
    try:
        size = path.stat().st_size
        with open(path, 'rb') as file:
            head = file.read(2 ** 17)  # two meta pages of at most 64 KiB
    except OSError as error:
        raise StoreError(path, f'cannot be read: {error.strerror}', 'missing') from error
    if size != expected:
        raise StoreError(path, f'has {size:,} bytes, expected {expected:,}: it was cut or written to', 'truncated')
    page = struct.unpack_from('<I', head, 40)[0] if len(head) >= 152 else 0
    starts = (0, page) if page in (2 ** power for power in range(8, 17)) else ()
    for start in starts:
        if len(head) < start + 152 or struct.unpack_from('<II', head, start + 16) != (_MAGIC, _VERSION):
            starts = ()
    if not starts:
        raise StoreError(path, 'is not an LMDB file: its meta pages are broken')
    last = max((struct.unpack_from('<QQ', head, start + 136) for start in starts), key=lambda meta: meta[1])[0]
    if (last + 1) * page > size:
        raise StoreError(path, f'has {size:,} bytes, but its pages reach to {(last + 1) * page:,}', 'truncated')


def read_sizes(folder: Path, index: dict) -> dict:
    """The arrays of sizes.safetensors, checked against the index."""
    from safetensors import SafetensorError
    from safetensors.numpy import load
    path = folder / 'sizes.safetensors'
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != index['sizes_sha256']:
            raise StoreError(path, 'has changed since it was packed (its SHA-256 differs)', 'truncated')
        table = load(data)
    except (OSError, SafetensorError) as error:
        raise StoreError(path, f'cannot be read: {error}', 'missing') from error
    rows, count = len(table.get('kind', ())), index['count']
    lengths = dict(text_tokens=count, num_targets=count, offsets=count + 1, **dict.fromkeys(MEDIA_COLUMNS, rows))
    for name, length in lengths.items():
        if name not in table or table[name].shape != (length,):
            raise StoreError(path, f'{name}: expected {length} numbers, got '
                             f'{table[name].shape if name in table else "none"}')
    if (table['kind'] >= len(KINDS)).any() or table['offsets'][-1] != rows or (np.diff(table['offsets']) < 0).any():
        raise StoreError(path, 'its offsets do not fit its media')
    return table
