"""Conversations, documents and other records, from a JSON list or from JSON lines, by index.

Formats: those of qvlkit/data/formats/detect.py, and LLaMA-Factory's dataset_info.json. Media stay undecoded.
Records are kept as bytes and parsed when asked for, so that workers share the memory and one broken line is one bad
sample.
"""
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.formats.content import BOX_SOURCES
from qvlkit.data.formats.dataset_info import read_dataset_info
from qvlkit.data.formats.detect import FORMATS, NAMED, check_format, detect_format
from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.registry import DATASETS
from qvlkit.structures import Sample, SampleError


@DATASETS.register_module()
class ConversationDataset:
    """Samples of one annotation file.

    Args:
        path: A .json file (a list of records), a .jsonl file (a record on each line), or a dataset_info.json.
        name: What the samples' source is called; default: the file's stem, or the entry of dataset_info.json.
        media_root: Media paths start here and must not lead out of it; default: the annotation file's folder.
        format: 'auto', 'llava', 'sharegpt', 'openai', 'preference', 'alpaca', 'document', 'caption', 'grounding' or
            'trajectory'.
        dataset: Entry of the dataset_info.json.
        boxes: The space of '"bbox_2d": [...]' and the like in answers, which are rescaled with the picture: 'source'
            (its pixels), 'thousand' or 'unit'; None leaves answers as they are.
        limit: Use the first so many records.
        allow_hosts: Hosts from which media are fetched, such as 'example.org'; empty: URLs are refused.

    Raises:
        ValueError: The file is missing, is of another kind, is not JSON (with line and column), or holds no record.
    """

    def __init__(self, path: str, *, name: str | None = None, media_root: str | None = None, format: str = 'auto',
                 dataset: str | None = None, boxes: str | None = None, limit: int | None = None,
                 allow_hosts: Sequence[str] = ()):
        check_format(format)
        if boxes not in BOX_SOURCES:
            raise ValueError(f"boxes: expected None, 'source', 'thousand' or 'unit', got {boxes!r}")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f'limit: expected a whole number above 0, got {limit!r}')
        self.path, self._names = Path(path).expanduser(), None
        _require_file(self.path, 'path')
        if self.path.name == 'dataset_info.json':
            file_name, self._names, format = read_dataset_info(self.path, dataset)
            self.path = self.path.parent / file_name
            name = name or dataset
            _require_file(self.path, f'{dataset}.file_name')
        elif dataset is not None:
            raise ValueError(f'dataset: {dataset!r} names an entry of a dataset_info.json, but path is {path!r}')
        self.name = name or self.path.stem
        self._format, self._boxes = format, boxes
        self._root = MediaRoot(self.path.parent if media_root is None else media_root, allow_hosts=allow_hosts)
        self._blob: bytes | None = None  # the records of a JSON list; of JSON lines only the offsets are kept
        self._lines: np.ndarray | None = None  # line number of each record of JSON lines, from 1
        if self.path.suffix == '.json':
            self._blob, self._offsets = _read_list(self.path)
        elif self.path.suffix == '.jsonl':
            self._offsets, self._lines = _index_lines(self.path)
        else:
            raise ValueError(f'path: expected a .json or .jsonl file, got {str(self.path)!r}')
        self._count = min(len(self._offsets), limit or len(self._offsets))
        if not self._count:
            raise ValueError(f'path: {str(self.path)!r} holds no records')

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; SampleError, with file, record and reason, if it cannot be used."""
        if not 0 <= index < self._count:
            raise IndexError(f'{self.name} has {self._count} samples, asked for {index}')
        sample_id = f'{self.path.name}[{index}]'
        record = self._record(index, sample_id)
        name = self._format if self._format != 'auto' else detect_format(record, sample_id)
        read = FORMATS[name]
        if name in NAMED and self._names is not None:
            read = functools.partial(read, names=self._names)
        sample = read(record, sample_id=sample_id, source=self.name, resolve=self._root.resolve, boxes=self._boxes)
        if not any(turn.role != 'system' for turn in sample.turns):
            raise SampleError(sample_id, 'the conversation is empty', 'empty_conversation')
        if not any(turn.role in ('assistant', 'document') for turn in sample.turns):
            raise SampleError(sample_id, 'no assistant turn: there is nothing to learn', 'no_answer')
        return sample

    def _record(self, index: int, sample_id: str) -> dict:
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
            raise SampleError(sample_id, f'{where} is not JSON: {error}', 'bad_json') from error
        if not isinstance(record, dict):
            raise SampleError(sample_id, f'expected a record (a dict), got {type(record).__name__}', 'wrong_type')
        return record


def _require_file(path: Path, key: str) -> None:
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
