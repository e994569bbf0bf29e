"""Conversations, documents and other records, by index, from any store of records.

Formats: those of qvlkit/data/formats/detect.py, and LLaMA-Factory's dataset_info.json. Media stay undecoded, and a
record is parsed when it is asked for, so that one broken record is one bad sample.
"""
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qvlkit.data.formats.content import BOX_SOURCES
from qvlkit.data.formats.dataset_info import read_dataset_info
from qvlkit.data.formats.detect import FORMATS, NAMED, check_format, detect_format
from qvlkit.data.formats.tagged import Names
from qvlkit.data.stores.json_file import require_file
from qvlkit.data.stores.opening import open_store
from qvlkit.registry import DATASETS
from qvlkit.structures import Sample, SampleError, SampleSizes


@DATASETS.register_module()
class ConversationDataset:
    """Samples of one store of records.

    Args:
        path: A .json file (a list of records), a .jsonl file (a record on each line), a dataset_info.json, or whatever
            another store reads: see `qvlkit.data.stores.opening`.
        store: Name of the store, for example 'LMDBStore'; default: by the path's suffix, or by the folder's files.
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

    def __init__(self, path: str | list[str], *, store: str | None = None, name: str | None = None,
                 media_root: str | None = None, format: str = 'auto', dataset: str | None = None,
                 boxes: str | None = None, limit: int | None = None, allow_hosts: Sequence[str] = ()):
        check_format(format)
        if boxes not in BOX_SOURCES:
            raise ValueError(f"boxes: expected None, 'source', 'thousand' or 'unit', got {boxes!r}")
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f'limit: expected a whole number above 0, got {limit!r}')
        names: Names | None = None
        if isinstance(path, (str, Path)) and Path(path).name == 'dataset_info.json':
            info = Path(path).expanduser()
            require_file(info, 'path')
            file_name, names, format = read_dataset_info(info, dataset)
            path, name = info.parent / file_name, name or dataset
            require_file(path, f'{dataset}.file_name')
        elif dataset is not None:
            raise ValueError(f'dataset: {dataset!r} names an entry of a dataset_info.json, but path is {path!r}')
        self.store = open_store(path, store=store, media_root=media_root,
                                **(dict(allow_hosts=tuple(allow_hosts)) if allow_hosts else {}))
        if format == 'auto' and names is None:  # a packed store remembers how its source was read
            reading = getattr(self.store, 'reading', {})
            format = reading.get('format', 'auto')
            check_format(format)
            names = Names(**reading['names']) if reading.get('names') else None
        self.name = name or self.store.name
        self.format, self.names, self.boxes = format, names, boxes
        packed = getattr(self.store, 'reading', None)
        self._sizes_hold = packed is None or {'boxes': None, **packed} == self.reading
        self._count = min(len(self.store), limit or len(self.store))
        if not self._count:
            raise ValueError(f'path: {str(path)!r} holds no records')

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        """The sample at `index`; SampleError, with file, record and reason, if it cannot be used."""
        return self.read(index)

    def read(self, index: int, resolve: Callable[[str], Any] | None = None) -> Sample:
        """The sample at `index`; `resolve` finds its media (reference -> path or bytes) instead of the store."""
        self._check(index)
        sample_id = self.store.record_id(index)
        record = self.store.record(index)
        name = self.format if self.format != 'auto' else detect_format(record, sample_id)
        read = FORMATS[name]
        if name in NAMED and self.names is not None:
            read = functools.partial(read, names=self.names)
        sample = read(record, sample_id=sample_id, source=self.name, boxes=self.boxes,
                      resolve=resolve or functools.partial(self.store.resolve, index))
        if not any(turn.role != 'system' for turn in sample.turns):
            raise SampleError(sample_id, 'the conversation is empty', 'empty_conversation')
        if not any(turn.role in ('assistant', 'document') for turn in sample.turns):
            raise SampleError(sample_id, 'no assistant turn: there is nothing to learn', 'no_answer')
        return sample

    @property
    def reading(self) -> dict:
        """How a record becomes a sample, as plain data: what a packed store remembers."""
        names = None if self.names is None else asdict(self.names)
        return dict(format=self.format, names=names, boxes=self.boxes)

    def sample_id(self, index: int) -> str:
        """The id of the sample at `index`, without reading it."""
        return self.store.record_id(index)

    def sizes(self, index: int) -> SampleSizes | None:
        """Sizes of the sample at `index`, where the store knows them without reading it: those of a packed store hold
        if its records are read as they were when it was packed."""
        self._check(index)
        return self.store.sizes(index) if self._sizes_hold else None

    def _check(self, index: int) -> None:
        if not 0 <= index < self._count:
            raise IndexError(f'{self.name} has {self._count} samples, asked for {index}')
