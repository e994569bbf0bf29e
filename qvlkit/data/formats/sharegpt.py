"""ShareGPT's records as LLaMA-Factory keeps them: `messages`, `images`, `videos`, under names of the data set's choice.

{"messages": [{"role": "user", "content": "<image>..."}, {"role": "assistant", "content": "..."}], "images": ["a.jpg"]}.
A `dataset_info.json` names the file of each data set and, where they differ from the defaults, its columns and tags.
"""
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from qvlkit.data.formats.tagged import Names, read_tagged
from qvlkit.registry import near_names
from qvlkit.structures import Sample

NAMES = Names(messages='messages', role_tag='role', content_tag='content', user_tag='user', assistant_tag='assistant')
# What LLaMA-Factory assumes where an entry of dataset_info.json is silent.
INFO_DEFAULTS = Names(messages='conversations', role_tag='from', content_tag='value', user_tag='human',
                      assistant_tag='gpt')
_COLUMNS = ('messages', 'images', 'videos', 'system', 'tools')
_TAGS = tuple(field.name for field in fields(Names) if field.name.endswith('_tag'))


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any], boxes: str | None = None,
         names: Names = NAMES) -> Sample:
    """One ShareGPT record -> Sample; SampleError says what is wrong with it."""
    return read_tagged(record, names, sample_id=sample_id, source=source, resolve=resolve, boxes=boxes)


def read_dataset_info(path: Path, dataset: str | None) -> tuple[str, Names, str]:
    """(file name, names, 'sharegpt' or 'openai') of one entry of a dataset_info.json.

    Raises:
        ValueError: The file is not JSON, there is no such entry, or the entry asks for what is not supported here.
    """
    try:
        table = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'{path}: not JSON: {error}') from error
    if not isinstance(table, dict):
        raise ValueError(f'{path}: expected a dict of data sets, got {type(table).__name__}')
    if dataset is None or dataset not in table:
        near = near_names(dataset, list(table)) if dataset else ''
        raise ValueError(f'dataset: {dataset!r} is not in {path}{near}; it has: {", ".join(table)}')
    entry, where = table[dataset], f'{path}: {dataset}'
    if not isinstance(entry, dict) or not isinstance(entry.get('file_name'), str):
        raise ValueError(f"{where}.file_name: expected a local file's name; data sets are not fetched from hubs")
    form = entry.get('formatting', 'alpaca')
    if form not in ('sharegpt', 'openai'):
        raise ValueError(f"{where}.formatting: expected 'sharegpt' or 'openai', got {form!r}")
    if entry.get('ranking'):
        raise ValueError(f'{where}.ranking: preference pairs are not conversations')
    chosen: dict[str, str] = {}
    for group, allowed in (('columns', _COLUMNS), ('tags', _TAGS)):
        for key, value in (entry.get(group) or {}).items():
            if key not in allowed:
                raise ValueError(f'{where}.{group}.{key}: unknown{near_names(key, list(allowed))}; expected one of '
                                 f'{", ".join(allowed)}')
            if value is not None:
                chosen[key] = value
    defaults = NAMES if form == 'openai' else INFO_DEFAULTS
    names = {field.name: chosen.get(field.name, getattr(defaults, field.name)) for field in fields(Names)}
    return entry['file_name'], Names(**names), form
