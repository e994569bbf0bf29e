"""Load a config (file, plugins, overrides, checks) and save it resolved.

    config = load_config('qwen25vl_tiny', ['stages.sft.optimizer.lr=1e-5'])
    save_config(config, 'work/tiny/config.json')      # load_config reads it back
"""
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from qvlkit.config.files import find_config, read_chain
from qvlkit.config.overrides import apply_overrides, parse_overrides
from qvlkit.config.parts import drop_inherited, validate
from qvlkit.config.plugins import load_plugins

REDACTED = '<redacted>'
SECRET_NAME = re.compile(r'(key|token|secret|password)s?(_id)?$', re.IGNORECASE)
# Names that end like a secret's and are none: image_key, eos_token, num_tokens, ...
HARMLESS_NAME = re.compile(
    r'tokens$|^key$|^(answer|audio|bos|box|cache|cls|config|end|eos|group|id|image|label|mask|media|pad|prompt|'
    r'question|sample|sep|sort|special|start|stop|text|unk|video|vision|visual)_(key|token)s?$', re.IGNORECASE)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """Read a config, apply overrides, import its plugins and check every key.

    Args:
        path: A .py, .yaml, .yml or .json file, or the name of a shipped config such as 'qwen25vl_tiny'.
        overrides: 'key.path=value' strings.

    Raises:
        ValueError: No such file, or something in it that a config may not have; names the file and the key.
    """
    pairs = parse_overrides(overrides)
    path = find_config(path)
    config, ancestors = read_chain(path)
    plugins = dict(pairs).get('plugins', config.get('plugins', []))
    load_plugins(plugins or [], path.parent)
    try:
        for ancestor in ancestors:
            drop_inherited(config, ancestor)
        if not pairs:
            validate(config)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if pairs:
        apply_overrides(config, pairs)
        try:
            validate(config)
        except ValueError as error:
            raise ValueError(f'{path} with its overrides: {error}') from error
    return ConfigDict(config)


def save_config(config: dict, path: str | Path) -> None:
    """Write a config as JSON, whole or not at all, without secrets. `load_config` reads it back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    temporary.write_text(json.dumps(redact(config), indent=2, ensure_ascii=False, allow_nan=False) + '\n',
                         encoding='utf-8')
    os.replace(temporary, path)


def redact(config: Any) -> Any:
    """A copy as plain data in which the values of keys that name a secret, and the values of environment variables
    that do wherever a Python config put them, read '<redacted>'."""
    secrets = [value for name, value in os.environ.items() if _names_secret(name) and len(value) >= 8]
    return _redact(config, secrets)


def _names_secret(name: str) -> bool:
    return bool(SECRET_NAME.search(name)) and not HARMLESS_NAME.search(name)


def _redact(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, dict):
        return {key: REDACTED if isinstance(item, str) and _names_secret(key) else _redact(item, secrets)
                for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(item, secrets) for item in value]
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, REDACTED)
    return value
