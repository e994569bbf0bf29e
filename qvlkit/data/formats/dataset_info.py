"""LLaMA-Factory's dataset_info.json: which file a data set is, in which form, under which names."""
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from qvlkit.data.formats import sharegpt
from qvlkit.data.formats.alpaca import AlpacaNames
from qvlkit.data.formats.tagged import Names
from qvlkit.registry import near_names

# What LLaMA-Factory assumes where an entry is silent.
DEFAULTS = {'sharegpt': Names(messages='conversations', role_tag='from', content_tag='value', user_tag='human',
                              assistant_tag='gpt'),
            'openai': sharegpt.NAMES, 'alpaca': AlpacaNames()}
_CHAT_COLUMNS = ('messages', 'images', 'videos', 'system', 'tools')
_ALPACA_COLUMNS = ('prompt', 'query', 'response', 'system', 'history', 'images', 'videos', 'tools')
_RANKING = ('chosen', 'rejected')
_TAGS = tuple(field.name for field in fields(Names) if field.name.endswith('_tag'))


def read_dataset_info(path: Path, dataset: str | None) -> tuple[str, Names | AlpacaNames, str]:
    """(file name, names, format: 'sharegpt', 'openai', 'alpaca' or 'preference') of one entry of a dataset_info.json.

    Raises:
        ValueError: The file is not JSON, there is no such entry, or the entry asks for what is not supported here.
    """
    entry, where = _entry(path, dataset)
    if not isinstance(entry, dict) or not isinstance(entry.get('file_name'), str):
        raise ValueError(f"{where}.file_name: expected a local file's name; data sets are not fetched from hubs")
    form = entry.get('formatting', 'alpaca')
    if form not in DEFAULTS:
        raise ValueError(f"{where}.formatting: expected 'alpaca', 'sharegpt' or 'openai', got {form!r}")
    ranking = entry.get('ranking', False)
    if not isinstance(ranking, bool):
        raise ValueError(f'{where}.ranking: expected true or false, got {ranking!r}')
    columns = (_ALPACA_COLUMNS if form == 'alpaca' else _CHAT_COLUMNS) + (_RANKING if ranking else ())
    defaults, chosen = DEFAULTS[form], {}
    for group, allowed in (('columns', columns), ('tags', () if form == 'alpaca' else _TAGS)):
        for key, value in (entry.get(group) or {}).items():
            if key not in allowed:
                raise ValueError(f'{where}.{group}.{key}: unknown{near_names(key, list(allowed))}; expected one of '
                                 f'{", ".join(allowed) or "none"}')
            if value is not None:
                chosen[key] = value
    names = {field.name: chosen.get(field.name, getattr(defaults, field.name)) for field in fields(defaults)}
    return entry['file_name'], type(defaults)(**names), 'preference' if ranking else form


def _entry(path: Path, dataset: str | None) -> tuple[Any, str]:
    try:
        table = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'{path}: not JSON: {error}') from error
    if not isinstance(table, dict):
        raise ValueError(f'{path}: expected a dict of data sets, got {type(table).__name__}')
    if dataset is None or dataset not in table:
        near = near_names(dataset, list(table)) if dataset else ''
        raise ValueError(f'dataset: {dataset!r} is not in {path}{near}; it has: {", ".join(table)}')
    return table[dataset], f'{path}: {dataset}'
