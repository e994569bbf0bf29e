"""JSON store: a .json file (a list of records) or a .jsonl file (a record on each line).

Of JSON lines only the places of the lines are kept; of a list, its records as bytes, parsed when asked for. So workers
share the memory, and one broken line is one bad record.
"""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.stores.interface import check_index
from qvlkit.registry import STORES
from qvlkit.structures import SampleError, SampleSizes


@STORES.register_module()
class JSONStore:
    """Records of one JSON file.

    Args:
        path: A .json or .jsonl file.
        media_root: Media paths start here and must not lead out of it; default: the file's folder.
        allow_hosts: Hosts from which URLs in records are fetched; empty: URLs are refused.

    Raises:
        ValueError: The file is missing, is of another kind, or is not JSON (with line and column).
    """

    def __init__(self, path: str | Path, *, media_root: str | Path | None = None,
                 allow_hosts: Sequence[str] = ()):
        self.path = Path(path).expanduser()
        require_file(self.path, 'path')
        self.name = self.path.stem
        self._root = MediaRoot(self.path.parent if media_root is None else media_root, allow_hosts=allow_hosts)
        self._blob: bytes | None = None  # the records of a JSON list; of JSON lines only the offsets are kept
        self._lines: np.ndarray | None = None  # line number of each record of JSON lines, from 1
        if self.path.suffix == '.json':
            self._blob, self._offsets = _read_list(self.path)
        elif self.path.suffix == '.jsonl':
            self._offsets, self._lines = _index_lines(self.path)
        else:
            raise ValueError(f'path: expected a .json or .jsonl file, got {str(self.path)!r}')

    def __len__(self) -> int:
        return len(self._offsets)

    def record_id(self, index: int) -> str:
        return f'{self.path.name}[{index}]'

    def record(self, index: int) -> dict:
        check_index(index, len(self), self.path.name)
        start, end = (int(offset) for offset in self._offsets[index])
        if self._blob is not None:
            data = self._blob[start:end]
        else:
            with open(self.path, 'rb') as file:
                file.seek(start)
                data = file.read(end - start)
        try:
            record = json.loads(data)
        except (ValueError, RecursionError) as error:
            where = f'line {self._lines[index]} of {str(self.path)!r}' if self._lines is not None else str(self.path)
            raise SampleError(self.record_id(index), f'{where} is not JSON: {error}', 'bad_json') from error
        if not isinstance(record, dict):
            raise SampleError(self.record_id(index), f'expected a record (a dict), got {type(record).__name__}',
                              'wrong_type')
        return record

    def resolve(self, index: int, text: str) -> Path | bytes:
        return self._root.resolve(text)

    def sizes(self, index: int) -> SampleSizes | None:
        return None

    def close(self) -> None:
        """Nothing is held open."""


def require_file(path: Path, key: str) -> None:
    """ValueError that names the config key unless the annotation file is there."""
    if not path.is_file():
        raise ValueError(f'{key}: annotation file {str(path)!r} {"is a folder" if path.is_dir() else "does not exist"}')


def _read_list(path: Path) -> tuple[bytes, np.ndarray]:
    """A JSON list -> its records as bytes end to end, and their (start, end), (count, 2)."""
    try:
        records: Any = json.loads(path.read_text(encoding='utf-8-sig'))
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}: not UTF-8 at byte {error.start}') from error
    except json.JSONDecodeError as error:
        hint = '; JSON lines are read from a .jsonl file' if error.msg == 'Extra data' else ''
        raise ValueError(f'{path}: not JSON: {error.msg} at line {error.lineno}, column {error.colno}{hint}') from error
    except RecursionError as error:
        raise ValueError(f'{path}: JSON is nested too deeply') from error
    if not isinstance(records, list):
        raise ValueError(f'{path}: expected a list of records, got {type(records).__name__}')
    pieces = [json.dumps(record).encode() for record in records]
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])[:-1]
    return b''.join(pieces), np.stack([starts, ends], axis=1)


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(start, end) in bytes of each line that is not blank, (count, 2), and its line number, (count,)."""
    offsets, numbers, position = [], [], 0
    with open(path, 'rb') as file:
        for number, line in enumerate(file, start=1):
            if number == 1 and line.startswith(b'\xef\xbb\xbf'):  # a byte order mark
                position, line = 3, line[3:]
            if line.strip():
                offsets.append((position, position + len(line)))
                numbers.append(number)
            position += len(line)
    return np.array(offsets, dtype=np.int64).reshape(-1, 2), np.array(numbers, dtype=np.int64)
