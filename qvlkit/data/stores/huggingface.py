"""Hugging Face store: a folder that `datasets` wrote with save_to_disk.

Arrow files are mapped, not read; images stay encoded. Nothing is fetched, and no script is run.
"""
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.stores.embedded import TableStore
from qvlkit.data.stores.interface import StoreError, check_index, needs
from qvlkit.registry import STORES
from qvlkit.structures import SampleError


@STORES.register_module()
class HuggingFaceStore(TableStore):
    """Rows of a saved data set as records.

    Args:
        path: The folder of one split: it holds state.json, dataset_info.json and .arrow files.
        media_root: Paths in records start here and must not lead out of it; default: the folder.
        allow_hosts: Hosts from which URLs in records are fetched; empty: URLs are refused.

    Raises:
        ValueError: The folder is missing, holds something else, or its files are broken.
    """

    def __init__(self, path: str | Path, *, media_root: str | Path | None = None,
                 allow_hosts: Sequence[str] = ()):
        self.path = Path(path).expanduser()
        self.name = self.path.resolve().name
        self._root = MediaRoot(self.path if media_root is None else media_root, allow_hosts=allow_hosts)
        _check_state(self.path)
        self.close()
        self._count = len(self._opened())

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict:
        return {**self.__dict__, '_table': None, '_pid': 0, '_row': (-1, [])}

    def record_id(self, index: int) -> str:
        return f'{self.name}[{index}]'

    def close(self) -> None:
        self._table, self._pid = None, 0
        self._row: tuple[int, list] = (-1, [])

    def _read(self, index: int) -> dict:
        check_index(index, self._count, self.name)
        import pyarrow as pa
        try:
            return self._opened()[index].to_pylist()[0]
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise SampleError(self.record_id(index), f'the row cannot be read: {error}', 'corrupt_record') from error

    def _opened(self) -> Any:
        """The data set in this process; its rows are Arrow tables, so that no image is decoded."""
        if self._table is None or self._pid != os.getpid():
            try:
                import datasets
                import pyarrow as pa
            except ImportError as error:
                raise needs('datasets', 'HuggingFaceStore', error) from error
            try:
                opened = datasets.load_from_disk(str(self.path))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                raise StoreError(self.path, f'cannot be opened as a saved data set: {error}') from error
            self._table, self._pid = opened.with_format('arrow'), os.getpid()
        return self._table


def _check_state(folder: Path) -> None:
    """The folder's state.json names files of this folder only, and they are there."""
    if not folder.is_dir():
        raise ValueError(f'path: folder {str(folder)!r} {"is a file" if folder.exists() else "does not exist"}')
    try:
        state = json.loads((folder / 'state.json').read_text(encoding='utf-8'))
        names = [entry['filename'] for entry in state['_data_files']]
    except FileNotFoundError as error:
        raise StoreError(folder, 'holds no state.json: expected a folder written by save_to_disk', 'missing') from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(folder, f'state.json cannot be read: {error!r}') from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith('.arrow'):
            raise StoreError(folder, f'state.json names the data file {name!r:.200}: expected the name of an .arrow '
                             'file in this folder', 'archive_refused')
        if not (folder / name).is_file():
            raise StoreError(folder, f'its data file {name!r} is missing', 'missing')
