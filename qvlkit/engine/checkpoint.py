"""The one checkpoint writer, and its reader (design, decision 11).

    root/
      step_500/            the name appears by a rename, when everything in it is on the disk
        model.safetensors  tensors; optimizer.safetensors, ... beside it
        state.json         what is not a tensor
        manifest.json      size and sha256 of every other file; written last
      step_1000/
      latest               'step_1000': replaced atomically, after the rename
      step_1500.tmp/       a save that died: never read, removed by the next save

Nothing here reads a pickle, and no flag makes it. A reader sees either a verified checkpoint or an error.
"""
import datetime
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT_VERSION = 1
MANIFEST, STATE, LATEST = 'manifest.json', 'state.json', 'latest'
EMA = 'ema.safetensors'  # the moving average of the weights that train, beside model.safetensors
_NAME = re.compile(r'step_(\d+)(\.old)?')  # .old: displaced by a save of the same step, still good
_log = logging.getLogger(__name__)


class CorruptCheckpointError(ValueError):
    """A checkpoint that is not what was written.

    Args:
        folder: The checkpoint.
        file: Name of the file in it.
        reason: What is wrong with it.
    """

    def __init__(self, folder: Path, file: str, reason: str):
        super().__init__(f'checkpoint {Path(folder).name} in {Path(folder).parent}: {file}: {reason}')
        self.folder, self.file, self.reason = Path(folder), file, reason
        match = _NAME.fullmatch(self.folder.name)
        self.step = int(match[1]) if match else None


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: `state` is read, tensors are read when asked for."""
    step: int
    path: Path
    state: dict
    files: tuple[str, ...]

    def tensors(self, file: str) -> dict[str, torch.Tensor]:
        """All tensors of one file, on the CPU, for example `tensors('model.safetensors')`."""
        if file not in self.files:
            raise ValueError(f'checkpoint {self.path} holds no {file}; it holds: {", ".join(self.files)}')
        return read_tensors(self.path / file)


def save_checkpoint(root: str | Path, step: int, *, tensors: dict[str, dict[str, torch.Tensor]], state: dict,
                    keep: int | None = None, write_more: Callable[[Path], None] | None = None,
                    after_write: Callable[[str], None] | None = None) -> Path:
    """Write `root/step_N`, all of it or nothing.

    Args:
        root: Folder of the run's checkpoints; made if absent.
        step: N.
        tensors: File name, ending in .safetensors -> tensors by name. Tensors that share memory are written once.
        state: What JSON can hold; becomes state.json.
        keep: How many checkpoints stay, this one included; None keeps all. Only whole ones count, and only earlier
            ones are removed.
        write_more: Called with the unfinished folder, to write further files into it; the manifest covers them too.
        after_write: Called with a name after each thing is written: each file, the manifest, the renamed folder,
            `latest`. It is where a test lets a save die.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: Something could not be written. Earlier checkpoints and `latest` are as they were.
        ValueError: An argument is of the wrong kind.
    """
    if keep is not None and keep < 1:
        raise ValueError(f'keep: expected at least 1 checkpoint or None for all, got {keep!r}')
    root, done = Path(root), after_write or (lambda name: None)
    root.mkdir(parents=True, exist_ok=True)
    for stale in root.glob('step_*.tmp'):
        shutil.rmtree(stale)
    folder, temporary = root / f'step_{step}', root / f'step_{step}.tmp'
    temporary.mkdir()
    try:
        for file, named in tensors.items():
            write_tensors(temporary / file, named)
            done(file)
        _write_json(temporary / STATE, state)
        done(STATE)
        if write_more is not None:
            write_more(temporary)
        _write_json(temporary / MANIFEST, _manifest(temporary, step))
        done(MANIFEST)
        for inside in [temporary, *(path for path in temporary.rglob('*') if path.is_dir())]:
            _sync(inside)
        _publish(temporary, folder)
        done(folder.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # absent if all went well; frees a full disk if not
    pointer = root / f'{LATEST}.tmp'
    pointer.write_text(folder.name + '\n')
    _sync(pointer)
    os.replace(pointer, root / LATEST)
    _sync(root)
    done(LATEST)
    _retain(root, step, keep)
    return folder


def load_checkpoint(path: str | Path, *, strict: bool = False) -> Checkpoint:
    """Find and verify a checkpoint; every byte of it is hashed before any tensor is handed out.

    Args:
        path: A run's folder of checkpoints, or one checkpoint. In a run's folder the one that `latest` names is tried
            first, then the newest before it, and so on; each corrupt one is reported as a warning.
        strict: A corrupt checkpoint is an error, also where another could stand in. One that was named itself is
            always treated so.

    Raises:
        FileNotFoundError: There is no checkpoint. Starting afresh is for the caller to decide, and never silent.
        CorruptCheckpointError: There is none that verifies.
    """
    path = Path(path)
    if path.is_dir() and (_NAME.fullmatch(path.name) or (path / MANIFEST).exists()):
        return _verified(path)
    candidates = checkpoints(path)
    if not candidates:
        raise FileNotFoundError(f'no checkpoint to resume from in {path}: expected folders named step_N')
    errors = []
    for folder in candidates:
        try:
            checkpoint = _verified(folder)
        except CorruptCheckpointError as error:
            if strict:
                raise
            _log.warning('CORRUPT CHECKPOINT, trying the one before it: %s', error)
            errors.append(error)
        else:
            if errors:
                _log.warning('falling back to %s', checkpoint.path)
            return checkpoint
    raise CorruptCheckpointError(errors[0].folder, errors[0].file,
                                 f'{errors[0].reason}; no other checkpoint of {len(errors)} in {path} is whole')


def checkpoints(root: str | Path) -> list[Path]:
    """Folders of `root` that claim to be checkpoints, unverified, in the order in which a resume tries them.

    First what `latest` names, even if it is missing: then the resume says so.
    """
    root = Path(root)
    found = {}
    for folder in root.iterdir() if root.is_dir() else ():
        if (match := _NAME.fullmatch(folder.name)) and folder.is_dir():
            found[folder] = (int(match[1]), match[2] is None)
    order = sorted(found, key=found.get, reverse=True)
    try:
        latest = (root / LATEST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return order
    match = _NAME.fullmatch(latest)
    if match is None:
        _log.warning('%s does not name a checkpoint: %.80r', root / LATEST, latest)
        return order
    first = root / latest
    later = [folder for folder in order if found[folder][0] > int(match[1])]
    return [first] + [folder for folder in order if folder != first and folder not in later] + later


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file; names whose tensors are one and the same share one copy."""
    if path.suffix != '.safetensors':
        raise ValueError(f'{path.name}: tensors are written as .safetensors only')
    first_name: dict[tuple, str] = {}
    aliases, kept, storages = {}, {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        key = (*storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first_name:
            aliases[name] = first_name[key]
            continue
        first_name[key] = name
        shares = storage in storages  # another view of the same memory
        storages.add(storage)
        kept[name] = tensor.clone(memory_format=torch.contiguous_format) if shares else tensor.contiguous()
    try:
        save_file(kept, path, metadata={'format': 'pt', 'aliases': json.dumps(aliases)})
    except SafetensorError as error:
        raise OSError(f'{path}: {error}') from error


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        CorruptCheckpointError: The file is not in that format, a pickle for example, whatever its name says.
    """
    path = Path(path)
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        aliases = (file.metadata() or {}).get('aliases', '{}')
    try:
        return tensors | {name: tensors[original] for name, original in json.loads(aliases).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpointError(path.parent, path.name, f'bad table of shared tensors: {aliases:.80}') from error


def _opened(path: Path) -> Any:
    if path.suffix != '.safetensors':
        raise CorruptCheckpointError(path.parent, path.name, 'tensors are read from .safetensors files only; pickles '
                                     '(.pt, .bin, .pkl, ...) can run code and are refused, with no flag to allow them')
    try:
        return safe_open(path, framework='pt')
    except (SafetensorError, OSError) as error:
        raise CorruptCheckpointError(path.parent, path.name, f'not a readable safetensors file ({error}); it may be a '
                                     'pickle, and those are refused, with no flag to allow them') from error


def _manifest(folder: Path, step: int) -> dict:
    """Hash and flush every file that lies in the folder."""
    files = {}
    for path in sorted(path for path in folder.rglob('*') if path.is_file()):
        files[path.relative_to(folder).as_posix()] = {'bytes': path.stat().st_size, 'sha256': _sha256(path, flush=True)}
    try:
        version = importlib.metadata.version('qvlkit')
    except importlib.metadata.PackageNotFoundError:
        version = 'not installed'
    return {'format_version': FORMAT_VERSION, 'step': step,
            'saved_at': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
            'versions': {'torch': torch.__version__, 'qvlkit': version}, 'files': files}


def _verified(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, after reading all of it; CorruptCheckpointError if a byte is not as written."""
    manifest = _read_json(folder, MANIFEST)
    files = manifest.get('files')
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise CorruptCheckpointError(folder, MANIFEST, "expected a table 'files'")
    if manifest.get('format_version') != FORMAT_VERSION:
        raise CorruptCheckpointError(folder, MANIFEST, f'expected format version {FORMAT_VERSION}, got '
                                     f'{manifest.get("format_version")!r}')
    match = _NAME.fullmatch(folder.name)
    if not isinstance(manifest.get('step'), int) or (match and manifest['step'] != int(match[1])):
        raise CorruptCheckpointError(folder, MANIFEST, f'it is of step {manifest.get("step")!r}')
    for name, entry in files.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise CorruptCheckpointError(folder, name, 'lies outside the checkpoint')
        if not path.is_file():
            raise CorruptCheckpointError(folder, name, 'is missing')
        if path.stat().st_size != entry.get('bytes'):
            raise CorruptCheckpointError(folder, name, f'has {path.stat().st_size} bytes, not {entry.get("bytes")!r}')
        if _sha256(path) != entry.get('sha256'):
            raise CorruptCheckpointError(folder, name, 'its content is not what was written (sha256 differs)')
        if path.suffix == '.safetensors':
            with _opened(path):
                pass
    if STATE not in files:
        raise CorruptCheckpointError(folder, STATE, 'is not in the manifest')
    return Checkpoint(manifest['step'], folder, _read_json(folder, STATE), tuple(files))


def _publish(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; what bears that name already stays readable as `.old` until then."""
    if folder.exists():
        old = folder.with_name(f'{folder.name}.old')
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    os.rename(temporary, folder)
    _sync(folder.parent)


def _retain(root: Path, step: int, keep: int | None) -> None:
    """Remove the displaced, and all but the newest `keep` whole checkpoints up to `step`, which was just verified."""
    displaced, earlier = [], []
    for folder in checkpoints(root):
        match = _NAME.fullmatch(folder.name)
        if match[2]:
            displaced.append(folder)
        elif int(match[1]) <= step and _looks_whole(folder):
            earlier.append((int(match[1]), folder))
    surplus = [folder for _, folder in sorted(earlier, reverse=True)[keep:]] if keep else []
    for folder in displaced + surplus:
        dying = folder.with_name(f'{folder.name}.tmp')  # a half removed folder must not look like a checkpoint
        try:
            os.rename(folder, dying)
            shutil.rmtree(dying)
        except OSError as error:
            _log.warning('could not remove the old checkpoint %s: %s', folder, error)


def _looks_whole(folder: Path) -> bool:
    """Whether the files have the sizes of the manifest: cheap, for counting."""
    try:
        files = _read_json(folder, MANIFEST)['files']
        return all((folder / name).stat().st_size == entry['bytes'] for name, entry in files.items())
    except (OSError, CorruptCheckpointError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: Path, flush: bool = False) -> str:
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_json(path: Path, value: dict) -> None:
    try:
        text = json.dumps(value, indent=1)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path.name}: cannot be written as JSON: {error}') from error
    path.write_text(text, encoding='utf-8')
    _sync(path)


def _read_json(folder: Path, name: str) -> dict:
    try:
        value = json.loads((folder / name).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise CorruptCheckpointError(folder, name, 'is missing') from error
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(folder, name, f'not readable as JSON ({error})') from error
    if not isinstance(value, dict):
        raise CorruptCheckpointError(folder, name, f'expected a JSON object, got {type(value).__name__}')
    return value
