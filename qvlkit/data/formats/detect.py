"""Which format a record is in."""
from collections.abc import Callable

from qvlkit.data.formats import (
    alpaca,
    caption,
    document,
    grounding_record,
    llava,
    openai,
    preference,
    sharegpt,
    trajectory,
)
from qvlkit.registry import near_names
from qvlkit.structures import Sample, SampleError

FORMATS: dict[str, Callable[..., Sample]] = {
    'llava': llava.read, 'sharegpt': sharegpt.read, 'openai': openai.read, 'preference': preference.read,
    'alpaca': alpaca.read, 'document': document.read, 'caption': caption.read, 'grounding': grounding_record.read,
    'trajectory': trajectory.read}
NAMED = ('sharegpt', 'alpaca', 'preference')  # their columns may have other names, by a dataset_info.json
# A record is of the first format of which it has all keys.
_KEYS = (('preference', ('chosen', 'rejected')), ('llava', ('conversations',)), ('trajectory', ('task', 'steps')),
         ('alpaca', ('instruction', 'output')), ('grounding', ('image', 'objects')), ('caption', ('caption',)),
         ('document', ('document',)), ('document', ('texts',)), ('document', ('text',)))


def check_format(name: str) -> None:
    """ValueError with near names unless `name` is 'auto' or a format."""
    if name != 'auto' and name not in FORMATS:
        raise ValueError(f'format: {name!r} is unknown{near_names(name, list(FORMATS))}; expected auto, '
                         f'{", ".join(FORMATS)}')


def detect_format(record: dict, sample_id: str) -> str:
    """The name of a record's format, by its keys.

    Of those with 'messages', it is OpenAI's if a turn's content is a list of parts, else ShareGPT's.
    """
    if 'messages' in record and not ('chosen' in record and 'rejected' in record):
        turns = record['messages'] if isinstance(record['messages'], list) else []
        in_parts = any(isinstance(turn, dict) and isinstance(turn.get('content'), list) for turn in turns)
        return 'openai' if in_parts else 'sharegpt'
    for name, keys in _KEYS:
        if all(key in record for key in keys):
            return name
    expected = '; '.join(f'{" and ".join(map(repr, keys))} ({name})' for name, keys in _KEYS)
    keys = ', '.join(map(repr, list(record)[:12]))
    raise SampleError(sample_id, f"unknown format: found the keys {keys or 'none'}, expected 'messages' (sharegpt, "
                      f'openai); {expected}', 'unknown_format')
