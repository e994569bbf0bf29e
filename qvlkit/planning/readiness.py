"""Is everything there that a real run needs? Asked before any work, so that the answer takes seconds and not an hour.

Looks at paths and sizes only: nothing is read, and the model is built on the meta device.
"""
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qvlkit.engine.adapters import add_adapters
from qvlkit.engine.optimizer import trainable_table
from qvlkit.models.builder import stage_model
from qvlkit.planning.memory import Memory, format_bytes, model_memory
from qvlkit.planning.parameters import total_parameters
from qvlkit.registry import TRAINERS

PATH_KEYS = ('path', 'media_root')  # keys of tokenizers and datasets that name a file or folder to read


@dataclass(frozen=True)
class AbsentPath:
    """A path of the config that leads nowhere: its config key, the path as written, and 'file' or 'folder'."""
    key: str
    path: str
    kind: str

    def __str__(self) -> str:
        return f'{self.key}: no such {self.kind} {self.path!r}'


def check_ready(config: dict, stages: list[str] | None = None, *, starting: list[str] | None = None,
                device_bytes: int | None = None) -> None:
    """Refuse a run whose files are absent, or whose model is larger than the device.

    Args:
        config: Resolved; see `qvlkit.config.load_config`.
        stages: Names of the stages that will run; the config's `run` if absent.
        starting: Those of them that take their first weights from where the config says; all if absent.
        device_bytes: Memory of the device; that of the first CUDA device, or of the machine, if absent.

    Raises:
        ValueError: One sentence with every reason, each of which begins with its config key.
    """
    stages = list(config['run']) if stages is None else stages
    starting = stages if starting is None else starting
    reasons = [str(absent) for absent in [*absent_paths(config, stages), *absent_sources(config, starting)]]
    where = 'this device'
    if device_bytes is None:
        device_bytes, where = device_memory()
    asked: set[str] = set()
    for name in stages:
        reason = _too_large(config, name, device_bytes, where)
        if reason and reason not in asked:
            reasons.append(reason)
            asked.add(reason)
    if reasons:
        raise ValueError('; '.join(reasons) + '; --dry-run shows the run without any of this')


def absent_paths(config: dict, stages: list[str]) -> list[AbsentPath]:
    """Paths of the tokenizer and of the stages' datasets that do not exist, in the config's order."""
    found = list(_paths(config.get('tokenizer', {}), 'tokenizer'))
    for name in stages:
        found += _paths(config['stages'][name].get('data', {}), f'stages.{name}.data')
    return _absent(found)


def absent_data(config: dict, key: str) -> list[AbsentPath]:
    """Paths in a dict of the config, at `key`, that do not exist."""
    return _absent(_paths(config, key))


def _absent(paths: Iterable[tuple[str, str]]) -> list[AbsentPath]:
    return [AbsentPath(key, path, 'file' if key.startswith('stages.') and key.endswith('.path') else 'folder')
            for key, path in paths if not _leads_somewhere(path)]


def absent_sources(config: dict, stages: list[str]) -> list[AbsentPath]:
    """Folders of first weights (`init`) that do not exist; what is no folder is the name of a stage."""
    return [AbsentPath(f'stages.{name}.init.{part}', source, f'stage ({", ".join(config["stages"])}) or folder')
            for name in stages for part, source in (config['stages'][name].get('init') or {}).items()
            if source is not None and source not in config['stages'] and not Path(source).expanduser().is_dir()]


def _leads_somewhere(path: str) -> bool:
    place = Path(path).expanduser()
    return place.exists() or next(glob.iglob(str(place)), None) is not None  # several files may be named by a glob


def _paths(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """(config key, path) of every path in a dict and the dicts inside it."""
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        if name in PATH_KEYS and isinstance(item, str) and not item.startswith('data:'):
            yield f'{key}.{name}', item
        yield from _paths(item, f'{key}.{name}')


def device_memory() -> tuple[int, str]:
    """Bytes of the device that a run would take, and what a message calls it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, f'the GPU ({torch.cuda.get_device_name(0)})'
    return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'), 'this machine (CPU)'


def _too_large(config: dict, name: str, device_bytes: int, where: str) -> str | None:
    """The reason why the stage's model does not fit; None if it does, or if its vocabulary is not known yet."""
    stage = config['stages'][name]
    key = f'stages.{name}.model' if 'model' in stage else 'model'
    vocab_size = vocabulary_rows(config, stage)
    if vocab_size is None:
        return None
    model = stage_model(config, stage, name=name, vocab_size=vocab_size, device='meta')
    add_adapters(model, stage.get('lora'), f'stages.{name}.lora')
    table = trainable_table(model, stage.get('parts') or {}, stage['optimizer'], config_key=f'stages.{name}.optimizer')
    memory = stage_memory(model, stage, {row['part']: row['trainable'] for row in table})
    if memory.total <= device_bytes:
        return None
    copies = ''.join(f', {what}' for size, what in ((memory.reference, "the reference's copy"),
                                                    (memory.average, 'the moving average')) if size)
    return (f'{key}: {total_parameters(model):,} parameters need {format_bytes(memory.total)} for weights, gradients, '
            f'optimizer states{copies}, but {where} has {format_bytes(device_bytes)}')


def stage_memory(model: nn.Module, stage: dict, trainable: dict[str, bool]) -> Memory:
    """What a stage holds before its first row: as its trainer and its `ema` say.

    Args:
        model: With its adapters, perhaps on the meta device.
        stage: Its config.
        trainable: Part -> whether it trains.
    """
    trainer = TRAINERS.get(stage['trainer']['type'])
    return model_memory(model, trainable, reference=trainer.keeps_reference(stage['trainer']),
                        average=bool(stage.get('ema')))


def vocabulary_rows(config: dict, stage: dict) -> int | None:
    """Rows of the embedding, where the config alone decides them."""
    model = stage.get('model', config['model'])
    return model['language_model'].get('vocab_size') or config.get('tokenizer', {}).get('vocab_size')
