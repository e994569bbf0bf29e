"""Overrides from the command line, `--set a.b=value`: data, parsed by OmegaConf, checked against what they replace."""
import copy
import inspect
import math
from collections.abc import Iterable, Iterator
from typing import Any

from qvlkit.config.keys import NULLABLE, known_keys
from qvlkit.config.parts import drop_inherited, find_part, is_named, join
from qvlkit.registry import constructor_keys, near_names

NOTHING = object()  # no value to compare with


def parse_overrides(overrides: Iterable[str]) -> list[tuple[str, Any]]:
    """'a.b=value' strings as (path, value) pairs; a dict as value becomes one pair for each of its leaves.

    Raises:
        ValueError: No key, text that is not data, or an interpolation.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    pairs = []
    for override in overrides:
        path, equals, text = override.partition('=')
        path = path.strip()
        if not equals or not all(path.split('.')):
            raise ValueError(f'--set {override}: expected key.path=value, for example stages.sft.optimizer.lr=1e-5')
        if '${' in text or '{{' in text:
            raise ValueError(f'--set {override}: {path}: interpolation is not supported, write the value')
        try:
            value = OmegaConf.to_container(OmegaConf.from_dotlist([f'value={text}']), resolve=False)['value']
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise ValueError(f'--set {override}: {path}: {" ".join(str(error).split())}') from error
        pairs += _leaves(path, value)
    return pairs


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(f'{path}.{key}', item)


def apply_overrides(config: dict, overrides: list[tuple[str, Any]]) -> None:
    """Change `config` in place. Types come first, so that the other keys meet the constructor they are meant for.

    Raises:
        ValueError: A key that nobody takes, or a value of another type than the one it replaces.
    """
    given = frozenset(path for path, _ in overrides)
    types = [pair for pair in overrides if pair[0].split('.')[-1] == 'type']
    others = [pair for pair in overrides if pair not in types]
    for path, value in sorted(types, key=lambda pair: pair[0].count('.')) + others:
        before = copy.deepcopy(config)
        try:
            _set(config, path.split('.'), value)
            drop_inherited(config, before, given)
        except ValueError as error:
            raise ValueError(f'--set {path}={value!r}: {error}') from error


def _set(config: dict, keys: list[str], value: Any) -> None:
    """Put `value` at the path `keys`, making the dicts on the way that a known key allows."""
    node, path = config, ''
    for key in keys[:-1]:
        if node.get(key) is None:
            _check_known(node, path, key)
            node[key] = {}
        path, node = join(path, key), node[key]
        if isinstance(node, list):
            raise ValueError(f'{path} is a list, which is replaced whole: {path}=[...]')
        if not isinstance(node, dict):
            raise ValueError(f'{path} is {node!r} and has no keys')
    key = keys[-1]
    if value is None and is_named(path):
        if node.pop(key, None) is None:
            _unknown(join(path, key), key, list(node))
        return
    if key not in node:
        _check_known(node, path, key)
    existing = node.get(key, NOTHING)
    default = _default(node, path, key)
    if existing is NOTHING:
        existing = default
    if value is None and (existing is NOTHING or default is None or key in NULLABLE or
                          path.endswith('.init')):  # null there: first weights
        node[key] = None
    else:
        node[key] = _fit(join(path, key), value, existing)


def _check_known(node: dict, path: str, key: str) -> None:
    """Refuse a key that neither the constructor nor the list of known keys takes."""
    if 'type' in node:
        known = constructor_keys(find_part(node['type'], path))
        known = None if known is None else ['type', *known]
    elif is_named(path) or (key == 'type' and not node):
        return
    elif not node and is_named(path.rpartition('.')[0]) and known_keys(path) is None:
        outer, _, name = path.rpartition('.')
        raise ValueError(f'{outer} has no entry {name!r}; to add one, give {path}.type')
    else:
        known = list(known_keys(path) or node)
    if known is not None and key not in known:
        _unknown(join(path, key), key, known)


def _unknown(path: str, key: str, known: list[str]) -> None:
    raise ValueError(f'the config has no key {path}{near_names(key, known)}; known there: {", ".join(known) or "none"}')


def _default(node: dict, path: str, key: str) -> Any:
    """The default that the constructor of `node` gives the argument `key`, or NOTHING."""
    if key == 'type' or 'type' not in node:
        return NOTHING
    parameter = inspect.signature(find_part(node['type'], path)).parameters.get(key)
    return NOTHING if parameter is None or parameter.default is parameter.empty else parameter.default


def _fit(path: str, value: Any, existing: Any) -> Any:
    """`value` as the type of `existing`: an int may become a float, nothing else changes."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{path}: expected a finite number, got {value}')
    if existing is None or existing is NOTHING:
        return value
    if path.endswith('.trainable') and type(value) in (bool, list):  # a list is a schedule; its reader checks it
        return value
    if type(existing) is float and type(value) is int:
        return float(value)
    expected = list if isinstance(existing, tuple) else type(existing)
    if type(value) is not expected:
        hint = "; quote it: \"'...'\"" if expected is str else ''
        raise ValueError(f'{path}: expected {expected.__name__} (now {existing!r}), '
                         f'got {type(value).__name__} {value!r}{hint}')
    if expected is list and existing and len({type(item) for item in existing}) == 1:
        return [_fit(f'{path}.{index}', item, existing[0]) for index, item in enumerate(value)]
    return value
