"""Which store reads a path: its suffix or its files decide, or its name is given."""
import glob
from pathlib import Path
from typing import Any

from qvlkit.data.stores.interface import Store, StoreError
from qvlkit.data.stores.json_file import require_file
from qvlkit.registry import STORES, near_names

SUFFIXES = {'.json': 'JSONStore', '.jsonl': 'JSONStore', '.parquet': 'ParquetStore', '.tar': 'TarStore'}
# A small compressed file may unfold to any size, and has no access by index.
COMPRESSED = ('.gz', '.tgz', '.bz2', '.xz', '.zst', '.zip', '.7z', '.lz4', '.br')
EXPECTED = ('expected a .json, .jsonl, .parquet or .tar file, a glob or a list of .parquet or .tar files, a folder '
            "with data.mdb (LMDB), or a folder that datasets' save_to_disk wrote")


def open_store(path: str | Path | list, *, store: str | None = None, media_root: str | Path | None = None,
               **options: Any) -> Store:
    """The store at `path`.

    Args:
        path: A file, a folder, or for .parquet and .tar also a glob or a list of files.
        store: Name of a registered store; None goes by the suffix, or by the files of a folder.
        media_root: Paths in records start here and must not lead out of it; the store's own default if absent.
        options: Further arguments of the store.

    Raises:
        ValueError: No store is called so or reads such a path, or the path is missing or broken.
    """
    if store is None:
        store = find_store(path)
    if media_root is not None:
        options['media_root'] = media_root
    return STORES.build(dict(type=store, path=path, **options), config_key='store')


def find_store(path: str | Path | list) -> str:
    """The name of the store that reads `path`; ValueError if there is none."""
    if isinstance(path, list):
        if not path or not all(isinstance(item, (str, Path)) for item in path):
            raise ValueError(f'path: expected a path or a list of them, got {path!r:.200}')
        names = {find_store(item) for item in path}
        if len(names) > 1 or names & {'JSONStore', 'LMDBStore', 'HuggingFaceStore'}:
            raise ValueError('path: a list holds .parquet files or .tar files only, got '
                             f'{", ".join(map(str, path)):.200}')
        return names.pop()
    if not isinstance(path, (str, Path)):
        raise ValueError(f'path: expected a path or a list of them, got {path!r:.200}')
    place = Path(path).expanduser()
    if place.is_dir():
        return _find_in_folder(place)
    suffix = place.suffix.lower()
    if suffix in COMPRESSED:
        raise StoreError(place, f'compressed files ({suffix}) are not read: they have no access by index, and a small '
                         'one may unfold to any size; decompress it first', 'archive_refused')
    if suffix not in SUFFIXES:
        if not glob.has_magic(str(path)):
            require_file(place, 'path')
        raise ValueError(f'path: no store reads {str(path)!r}{near_names(suffix, list(SUFFIXES)) if suffix else ""}; '
                         f'{EXPECTED}')
    return SUFFIXES[suffix]


def _find_in_folder(folder: Path) -> str:
    if (folder / 'data.mdb').is_file():
        return 'LMDBStore'
    if (folder / 'state.json').is_file():
        return 'HuggingFaceStore'
    splits = sorted(state.parent.name for state in folder.glob('*/state.json'))
    if splits:
        raise ValueError(f'path: {str(folder)!r} holds several splits; name one of them: '
                         f'{", ".join(str(folder / split) for split in splits)}')
    for suffix in SUFFIXES:
        if next(folder.glob(f'*{suffix}'), None) is not None:
            raise ValueError(f'path: {str(folder)!r} is a folder; name its files: {str(folder / f"*{suffix}")!r}')
    raise ValueError(f'path: {str(folder)!r} is a folder that no store reads; {EXPECTED}')


def expand(path: str | Path | list, suffix: str) -> list[Path]:
    """The files that a path, a glob or a list of them names; those of a glob sorted.

    Raises:
        ValueError: No file, a missing one, or one with another suffix.
    """
    files: list[Path] = []
    for item in path if isinstance(path, (list, tuple)) else [path]:
        text = str(Path(item).expanduser())
        if Path(text).is_file():
            found = [text]
        elif glob.has_magic(text):
            found = sorted(glob.glob(text))
        else:
            hint = '; braces are not expanded, use a glob such as part-*' if '{' in text else ''
            raise ValueError(f'path: {text!r} {"is a folder" if Path(text).is_dir() else "does not exist"}{hint}')
        if not found:
            raise ValueError(f'path: no file matches {text!r}')
        files += map(Path, found)
    for file in files:
        if file.suffix != suffix:
            raise ValueError(f'path: expected {suffix} files, got {str(file)!r}')
    return files


def name_of(files: list[Path]) -> str:
    """What samples of these files are called: the file's stem, or the folder's name if there are several."""
    return files[0].stem if len(files) == 1 else files[0].resolve().parent.name
