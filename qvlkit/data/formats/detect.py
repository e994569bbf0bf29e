"""Which format a record is in."""
from collections.abc import Callable

from qvlkit.data.formats import llava, openai, sharegpt
from qvlkit.registry import near_names
from qvlkit.structures import Sample, SampleError

FORMATS: dict[str, Callable[..., Sample]] = {'llava': llava.read, 'sharegpt': sharegpt.read, 'openai': openai.read}


def check_format(name: str) -> None:
    """ValueError with near names unless `name` is 'auto' or a format."""
    if name != 'auto' and name not in FORMATS:
        raise ValueError(f'format: {name!r} is unknown{near_names(name, list(FORMATS))}; expected auto, '
                         f'{", ".join(FORMATS)}')


def detect_format(record: dict, sample_id: str) -> str:
    """The name of a record's format, by its keys.

    'conversations' is LLaVA's; 'messages' is OpenAI's if a turn's content is a list of parts, else ShareGPT's.
    """
    if 'conversations' in record:
        return 'llava'
    if 'messages' in record:
        turns = record['messages'] if isinstance(record['messages'], list) else []
        in_parts = any(isinstance(turn, dict) and isinstance(turn.get('content'), list) for turn in turns)
        return 'openai' if in_parts else 'sharegpt'
    keys = ', '.join(map(repr, list(record)[:12]))
    raise SampleError(sample_id, f"unknown format: expected 'conversations' (LLaVA) or 'messages' (ShareGPT, OpenAI), "
                      f'found the keys {keys or "none"}', 'unknown_format')
