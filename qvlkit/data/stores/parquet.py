"""Parquet store: rows of one or several .parquet files; a column is a key of the record.

A row group is read as a whole and the last one is kept, so rows in order are cheap, while rows at random cost a row
group each: for training, write small row groups or pack the rows into LMDB.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.stores.embedded import TableStore
from qvlkit.data.stores.interface import StoreError, check_index, needs
from qvlkit.data.stores.opening import expand, name_of
from qvlkit.registry import STORES, near_names
from qvlkit.structures import SampleError


@STORES.register_module()
class ParquetStore(TableStore):
    """Rows of Parquet files as records.

    Args:
        path: A .parquet file, a glob, or a list of files. Images are columns of bytes, of {'bytes', 'path'}, of paths,
            or lists of these.
        media_root: Paths in records start here and must not lead out of it; default: the first file's folder.
        allow_hosts: Hosts from which URLs in records are fetched; empty: URLs are refused.
        columns: Read these only; all if absent.
        max_group_bytes: A row group that unfolds to more is refused: it would have to be held in memory.

    Raises:
        ValueError: A file is missing or not Parquet, a column is unknown, or a row group is too large.
    """

    def __init__(self, path: str | Path | list, *, media_root: str | Path | None = None,
                 allow_hosts: Sequence[str] = (), columns: list[str] | None = None, max_group_bytes: int = 2 ** 31):
        self.files = expand(path, '.parquet')
        self.name = name_of(self.files)
        self._columns = columns
        self._root = MediaRoot(self.files[0].parent if media_root is None else media_root, allow_hosts=allow_hosts)
        groups = [(number, group, rows) for number, file in enumerate(self.files)
                  for group, rows in enumerate(_group_rows(file, columns, max_group_bytes))]
        self._groups = np.array(groups, dtype=np.int64).reshape(-1, 3)  # file, row group in it, rows
        self._ends = np.cumsum(self._groups[:, 2])
        per_file = np.bincount(self._groups[:, 0], self._groups[:, 2], minlength=len(self.files)).astype(np.int64)
        self._file_ends = np.cumsum(per_file)
        self.close()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_group': (-1, None), '_row': (-1, [])}

    def record_id(self, index: int) -> str:
        file = int(np.searchsorted(self._file_ends, index, side='right'))
        file = min(file, len(self.files) - 1)
        return f'{self.files[file].name}[{index - int(self._file_ends[file - 1]) if file else index}]'

    def close(self) -> None:
        """Forget the row group in memory; no file is held open."""
        self._group: tuple[int, Any] = (-1, None)
        self._row: tuple[int, list] = (-1, [])

    def _read(self, index: int) -> dict:
        check_index(index, len(self), self.name)
        import pyarrow as pa
        import pyarrow.parquet as pq
        number = int(np.searchsorted(self._ends, index, side='right'))
        if self._group[0] != number:
            self._group = (-1, None)  # so that never two are in memory
            file, group, _ = self._groups[number]
            try:
                with pq.ParquetFile(self.files[file]) as opened:
                    table = opened.read_row_group(int(group), columns=self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise SampleError(self.record_id(index), f'row group {group} of {str(self.files[file])!r} cannot be '
                                  f'read: {error}', 'corrupt_record') from error
            self._group = (number, table)
        row = index - int(self._ends[number] - self._groups[number, 2])
        try:
            return self._group[1].slice(row, 1).to_pylist()[0]
        except (pa.ArrowException, ValueError, IndexError) as error:  # text that is not UTF-8, fewer rows than told
            raise SampleError(self.record_id(index), f'the row cannot be read: {error}', 'corrupt_record') from error


def _group_rows(file: Path, columns: list[str] | None, max_group_bytes: int) -> list[int]:
    """Rows of each row group, from the file's footer alone."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise needs('pyarrow', 'ParquetStore', error) from error
    try:
        with pq.ParquetFile(file) as opened:
            metadata, names = opened.metadata, opened.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise StoreError(file, f'is not a Parquet file: {error}') from error
    for column in columns or []:
        if column not in names:
            raise ValueError(f'columns: {file} has no column {column!r}{near_names(column, names)}; it has: '
                             f'{", ".join(names)}')
    rows = []
    for group in range(metadata.num_row_groups):
        described = metadata.row_group(group)
        if described.total_byte_size > max_group_bytes:
            raise StoreError(file, f'row group {group} unfolds to {described.total_byte_size:,} bytes, limit '
                             f'{max_group_bytes:,} (max_group_bytes); write smaller row groups', 'archive_refused')
        rows.append(described.num_rows)
    return rows
