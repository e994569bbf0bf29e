"""ShareGPT's records as LLaMA-Factory keeps them: `messages`, `images`, `videos`, under names of the data set's choice.

{"messages": [{"role": "user", "content": "<image>..."}, {"role": "assistant", "content": "..."}], "images": ["a.jpg"]}.
A `dataset_info.json` names the columns and tags of a data set where they differ from the defaults.
"""
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats.tagged import Names, read_tagged
from qvlkit.structures import Sample

NAMES = Names(messages='messages', role_tag='role', content_tag='content', user_tag='user', assistant_tag='assistant')


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any], boxes: str | None = None,
         names: Names = NAMES) -> Sample:
    """One ShareGPT record -> Sample; SampleError says what is wrong with it."""
    return read_tagged(record, names, sample_id=sample_id, source=source, resolve=resolve, boxes=boxes)
