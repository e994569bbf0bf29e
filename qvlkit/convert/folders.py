"""What lies in a model folder: which of three kinds it is, its `model` config, and the files that go along.

    Hugging Face folder    config.json with a model_type, weights by their names
    converted folder       model.json (ours), huggingface_config.json, weights by our names
    training checkpoint    config.json (the resolved config of a run), manifest.json, weights by our names;
                           or the folder of a stage that holds such checkpoints: the newest intact one is taken

Tokenizer, processor, chat template and generation files lie beside the weights in Hugging Face's form in all three,
and travel unchanged. Code (`modeling_x.py`, named by `auto_map`) is neither run nor copied.
"""
import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qvlkit.convert.config_mapping import model_from_config
from qvlkit.convert.weight_files import PICKLES, read_json
from qvlkit.engine.checkpoint import MANIFEST, checkpoints, load_checkpoint

CONFIG, MODEL, KEPT_CONFIG = 'config.json', 'model.json', 'huggingface_config.json'
FORMAT_VERSION = 1
_CARRIED_SUFFIXES = ('.json', '.jinja', '.txt', '.md', '.model')
_OWN_FILES = (CONFIG, MODEL, KEPT_CONFIG, MANIFEST, 'state.json')
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFolder:
    """An opened folder; weights are not read yet.

    path: where weights and tokenizer files lie. kind: 'huggingface', 'converted' or 'training'. model: our config.
    config_file: the config.json of Hugging Face that the model came from, if known.
    """
    path: Path
    kind: str
    model: dict
    config_file: Path | None = None


def open_folder(path: str | Path) -> ModelFolder:
    """Recognise a folder.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: It is none of the three kinds, or its config is refused; see `model_from_config`.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f'{path}: no such folder')
    if (path / MODEL).is_file():
        content = read_json(path / MODEL)
        if content.get('format_version') != FORMAT_VERSION or not isinstance(content.get('model'), dict):
            raise ValueError(f"{path / MODEL}: expected format_version {FORMAT_VERSION} and a table 'model', got "
                             f'format_version {content.get("format_version")!r}')
        kept = path / KEPT_CONFIG
        return ModelFolder(path, 'converted', content['model'], kept if kept.is_file() else None)
    if (path / MANIFEST).is_file() or checkpoints(path):
        path = load_checkpoint(path).path
        content = read_json(path / CONFIG)
        if not isinstance(content.get('model'), dict):
            raise ValueError(f"{path / CONFIG}: expected the config of a run, with a table 'model'")
        return ModelFolder(path, 'training', content['model'], _source_config(content))
    if not (path / CONFIG).is_file():
        raise ValueError(f'{path}: not a model folder; expected {CONFIG} (Hugging Face), {MODEL} (converted) or '
                         f'step_N folders (training)')
    content = read_json(path / CONFIG)
    try:
        return ModelFolder(path, 'huggingface', model_from_config(content), path / CONFIG)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error


def hugging_face_config(folder: str | Path) -> Path | None:
    """The config.json of Hugging Face in a folder of its kind or of the converted kind; None if there is none."""
    kept, own = Path(folder) / KEPT_CONFIG, Path(folder) / CONFIG
    if kept.is_file():
        return kept
    return own if own.is_file() and 'model_type' in read_json(own) else None


def write_model(folder: ModelFolder, target: Path) -> None:
    """Make `target` a converted folder: our `model` config, and the config.json that it came from."""
    content = {'format_version': FORMAT_VERSION, 'model': folder.model}
    (target / MODEL).write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    shutil.copyfile(folder.config_file, target / KEPT_CONFIG)


def carry(source: Path, target: Path) -> None:
    """Copy what is neither weights nor code, byte for byte; the log says what was left behind."""
    left, code = [], []
    for file in sorted(source.iterdir()):
        if file.suffix == '.py':
            code.append(file.name)
        elif not file.is_file() or file.name.endswith('.index.json') or file.name in _OWN_FILES:
            continue
        elif file.suffix in _CARRIED_SUFFIXES or file.name.startswith(('LICENSE', 'NOTICE')):
            shutil.copyfile(file, target / file.name)
        elif file.suffix in PICKLES:
            left.append(file.name)
    if code:
        _log.warning('code that lies beside the weights is neither run nor copied: %s', ', '.join(code))
    if left:
        _log.warning('pickles are neither read nor copied: %s', ', '.join(left))


@contextlib.contextmanager
def new_folder(target: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets its name `target` only when all went well.

    Raises:
        ValueError: `target` is there and holds something.
    """
    target = Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f'{target}: is there already and is not an empty folder; nothing is overwritten')
    partial = target.with_name(f'{target.name}.partial-{os.getpid()}')
    partial.mkdir(parents=True)
    try:
        yield partial
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _source_config(config: dict) -> Path | None:
    """The config.json beside the tokenizer that a run started from."""
    path = (config.get('tokenizer') or {}).get('path')
    return hugging_face_config(path) if path and Path(path).is_dir() else None
