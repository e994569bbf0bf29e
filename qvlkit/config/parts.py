"""Which registered part a dict of the config names, whether its keys fit, and which keys go when its type changes."""
import logging
from typing import Any

from qvlkit import registry
from qvlkit.config.keys import NAMED, REQUIRED, REQUIRED_OF_STAGE, known_keys
from qvlkit.registry import constructor_keys, near_names

logger = logging.getLogger('qvlkit')

# The registry of a dict by its own key, and by the key of the dict around it.
SLOTS = {'vision_encoder': registry.VISION_ENCODERS, 'merger': registry.MERGERS,
         'position_encoding': registry.POSITION_ENCODINGS, 'language_model': registry.LANGUAGE_MODELS,
         'loss': registry.LOSSES, 'text_tower': registry.TEXT_TOWERS, 'pooling': registry.POOLINGS,
         'strategy': registry.STRATEGIES, 'data': registry.DATASETS, 'tokenizer': registry.TOKENIZERS,
         'optimizer': registry.OPTIMIZERS, 'schedule': registry.SCHEDULES, 'trainer': registry.TRAINERS,
         'dataset': registry.DATASETS}
SLOTS_INSIDE = {'hooks': registry.HOOKS, 'metrics': registry.METRICS, 'datasets': registry.DATASETS,
                'transforms': registry.TRANSFORMS}
# Type of a part -> its key whose dict names parts of another library; they are that library's to check.
FOREIGN = {'MMCVTransform': 'transform'}


def find_part(name: Any, path: str) -> Any:
    """The part that `name`, the `type` of the dict at `path`, is registered as.

    Raises:
        ValueError: Nobody registered it; names the key and near names.
    """
    *outer, key = path.split('.')
    kind = SLOTS_INSIDE.get(outer[-1]) if outer else None
    kind = kind or SLOTS.get(key)
    if kind is not None:
        return kind.get(name, config_key=path)
    for kind in registry.ALL:
        if name in kind.names():
            return kind.get(name)
    every = sorted({name for kind in registry.ALL for name in kind.names()})
    raise ValueError(f'{path}.type: no part is registered as {name!r}{near_names(name, every)}')


def drop_inherited(config: dict, before: dict, given: frozenset[str] = frozenset(), path: str = '') -> None:
    """Where `type` differs from `before`, drop in place the keys taken over unchanged that the new part lacks.

    Args:
        config: The config after a change.
        before: The config before it: a file that was inherited, or the state before the overrides.
        given: Paths of keys that the user stated, which stay and are judged by `validate`.
        path: Path of `config` in the whole config.
    """
    for key, value in config.items():
        if isinstance(value, dict) and isinstance(before.get(key), dict) and FOREIGN.get(config.get('type')) != key:
            drop_inherited(value, before[key], given, f'{path}.{key}'.lstrip('.'))
    if 'type' not in config or 'type' not in before or config['type'] == before['type']:
        return
    accepted = constructor_keys(find_part(config['type'], path))
    for key in [] if accepted is None else sorted(config.keys() - {'type', *accepted}):
        if key in before and config[key] == before[key] and f'{path}.{key}' not in given:
            logger.info('%s.%s = %r dropped: %s replaces %s and does not take it', path, key, config.pop(key),
                        config['type'], before['type'])


def validate(config: dict) -> None:
    """Check every key of a config before any work begins.

    Raises:
        ValueError: A key that nobody reads, a `type` that nobody registered, a learning rate that is no number;
            names the full key path and near names.
    """
    _validate_dict(config, '')
    stages, run = config.get('stages', {}), config.get('run', [])
    if not isinstance(run, list):
        raise ValueError(f'run: expected a list of stages, got {run!r}')
    for name in run:
        if name not in stages:
            raise ValueError(f'run: no stage is called {name!r}{near_names(name, list(stages))}; '
                             f'stages: {", ".join(stages)}')


def check_complete(config: dict, stages: list[str]) -> None:
    """Check that nothing which the run of these stages needs is absent.

    Raises:
        ValueError: A stage is not there, or a key is; names it.
    """
    known = list(config.get('stages', {}))
    for key in REQUIRED:
        if key not in config:
            raise ValueError(f'{key}: the config lacks this key; a run needs: {", ".join(REQUIRED)}')
    if not stages:
        raise ValueError(f'run: no stage is named; stages: {", ".join(known)}')
    for stage in stages:
        if stage not in known:
            raise ValueError(f'run: no stage is called {stage!r}{near_names(stage, known)}; stages: {", ".join(known)}')
        for key in REQUIRED_OF_STAGE:
            if key not in config['stages'][stage]:
                raise ValueError(f'stages.{stage}.{key}: the config lacks this key; a stage needs: '
                                 f'{", ".join(REQUIRED_OF_STAGE)}')


def _validate_dict(config: dict, path: str) -> None:
    if 'custom_imports' in config:
        raise ValueError(f'{join(path, "custom_imports")}: would run any module; name it in plugins = [...] instead')
    if 'type' in config:
        known = constructor_keys(find_part(config['type'], path))
        owner = f'{config["type"]} has no argument'
    else:
        known, owner = known_keys(path), 'unknown key'
    for key, value in config.items():
        here = join(path, key)
        if known is not None and key != 'type' and key not in known:
            raise ValueError(f'{here}: {owner} {key!r}{near_names(key, list(known))}; known: {", ".join(known)}'
                             + ('' if path else '; helper names in a Python config start with an underscore'))
        if key == 'lr' and value is not None and (type(value) not in (int, float) or value < 0):
            raise ValueError(f'{here}: expected a learning rate, a number of at least 0, got {value!r}')
        if FOREIGN.get(config.get('type')) != key:
            _validate_value(value, here)


def _validate_value(value: Any, path: str) -> None:
    if isinstance(value, dict):
        _validate_dict(value, path)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _validate_value(item, f'{path}.{index}')
    elif path in ('stages', 'model', 'tokenizer', 'processor') or path.split('.')[-2:-1] == ['stages']:
        raise ValueError(f'{path}: expected a dict, got {value!r}')


def is_named(path: str) -> bool:
    """Whether the user makes up the keys of the dict at `path`."""
    keys = path.split('.')
    of_a_mixture = keys[-1] == 'parts' and not (keys[0] == 'stages' and len(keys) == 3)
    return keys[-1] in NAMED or of_a_mixture


def join(path: str, key: str) -> str:
    """A key below a path."""
    return f'{path}.{key}' if path else key
