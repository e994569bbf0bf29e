"""Alpaca's instructions, as LLaMA-Factory keeps them.

{"instruction": "...", "input": "...", "output": "...", "system": "...", "history": [["question", "answer"], ...],
"images": ["a.jpg"]}. The question is the instruction, and the input on the next line if there is one. <image> and
<video> stand for the record's media, as in ShareGPT's records.
"""
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qvlkit.data.formats.sharegpt import NAMES
from qvlkit.data.formats.tagged import read_tagged
from qvlkit.structures import Sample, SampleError


@dataclass(frozen=True)
class AlpacaNames:
    """Where a record keeps what (LLaMA-Factory's `columns`)."""
    prompt: str = 'instruction'
    query: str = 'input'
    response: str = 'output'
    system: str = 'system'
    history: str = 'history'
    images: str = 'images'
    videos: str = 'videos'
    tools: str = 'tools'
    chosen: str = 'chosen'
    rejected: str = 'rejected'


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any], boxes: str | None = None,
         names: AlpacaNames = AlpacaNames()) -> Sample:
    """One instruction with its answer -> Sample; SampleError says what is wrong with it."""
    chat = to_chat(record, names, sample_id)
    chat['messages'].append({'role': 'assistant', 'content': _text(record, names.response, sample_id)})
    return read_tagged(chat, NAMES, sample_id=sample_id, source=source, resolve=resolve, boxes=boxes)


def to_chat(record: dict, names: AlpacaNames, sample_id: str) -> dict:
    """The record without its answer, in ShareGPT's form."""
    messages = []
    history = record.get(names.history) or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise SampleError(sample_id, f'{names.history}: expected a list of [question, answer], got {history!r:.200}',
                          'wrong_type')
    for question, answer in history:
        messages += [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]
    question = _text(record, names.prompt, sample_id)
    query = record.get(names.query)
    if query:
        question = f'{question}\n{_text(record, names.query, sample_id)}' if question else query
    messages.append({'role': 'user', 'content': question})
    chat: dict[str, Any] = {'messages': messages, 'system': record.get(names.system), 'tools': record.get(names.tools)}
    for ours, single, theirs in (('images', 'image', names.images), ('videos', 'video', names.videos)):
        chat |= {ours: record[theirs]} if theirs in record else {}
        chat |= {single: record[single]} if single in record and single != theirs else {}
    return chat | ({'fps': record['fps']} if 'fps' in record else {})


def _text(record: dict, key: str, sample_id: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise SampleError(sample_id, f'{key}: expected text, got {text!r:.100}', 'wrong_type')
    return text
