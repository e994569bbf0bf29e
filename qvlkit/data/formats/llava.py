"""LLaVA's records, which the official Qwen fine-tuning code reads too.

{"image": "a.jpg" | ["a.jpg", ...], "video": ..., "conversations": [{"from": "human", "value": "<image>\\n..."},
{"from": "gpt", "value": "..."}]}. Source: LLaVA (arXiv 2304.08485). Text around tags is kept verbatim: the newline
after <image> stays.
"""
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.tagged import Names, read_tagged
from qvlkit.structures import Sample

NAMES = Names(messages='conversations', role_tag='from', content_tag='value', user_tag='human', assistant_tag='gpt')


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One LLaVA record -> Sample; SampleError says what is wrong with it."""
    return read_tagged(record, NAMES, sample_id=sample_id, source=source, resolve=resolve, boxes=boxes)
