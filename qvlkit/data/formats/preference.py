"""Preference pairs: one conversation, a better last answer and a worse one.

As LLaMA-Factory keeps them: {"conversations": [...], "chosen": {"from": "gpt", "value": "..."}, "rejected": {...}}, or
with 'messages', or 'instruction' and 'input', and <image> tags with "images". As TRL keeps them: {"prompt": "..." or
a list of messages, "chosen": "..." or a list of messages, "rejected": ..., "images": [...]}, where the conversation
may stand in 'chosen' and 'rejected' instead. Pictures of a prompt without a tag or part for them come before its text.
"""
from collections.abc import Callable
from typing import Any

from qvlkit.data.formats import alpaca, llava, sharegpt
from qvlkit.data.formats.alpaca import AlpacaNames, to_chat
from qvlkit.data.formats.openai import read_messages
from qvlkit.data.formats.tagged import Names, media_list, read_tagged
from qvlkit.structures import Sample, SampleError


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any], boxes: str | None = None,
         names: Names | AlpacaNames | None = None) -> Sample:
    """One pair -> Sample that ends with the chosen answer, with the worse one in `rejected`.

    Raises:
        SampleError: As for the formats of conversations, and: an answer is missing, the answers are the same, or the
            two sides differ in more than the last answer.
    """
    if names is None:
        names = _names_of(record)
    keys = (names.chosen, names.rejected) if names else ('chosen', 'rejected')
    sides = []
    for key in keys:
        answer = record.get(key)
        if not answer or not isinstance(answer, (str, dict, list)):
            raise SampleError(sample_id, f'{key}: expected an answer as text, a turn or a list of turns, got '
                              f'{answer!r:.100}', 'wrong_type')
        sides.append(_read_side(record, answer, names, sample_id, source, resolve, boxes))
        if not sides[-1].turns or sides[-1].turns[-1].role != 'assistant' or not any(
                turn.role == 'user' for turn in sides[-1].turns):
            raise SampleError(sample_id, f'{key}: expected a question and then an answer at the end, got the roles '
                              f'{[turn.role for turn in sides[-1].turns]}', 'no_answer')
    chosen, rejected = sides
    if chosen.turns[:-1] != rejected.turns[:-1]:
        raise SampleError(sample_id, f'{keys[0]} and {keys[1]} differ before the last answer', 'other_prompt')
    if chosen.turns[-1] == rejected.turns[-1]:
        raise SampleError(sample_id, f'{keys[0]} and {keys[1]} are the same answer', 'same_answers')
    chosen.rejected = rejected.turns[-1:]
    return chosen


def _names_of(record: dict) -> Names | AlpacaNames | None:
    """The names that fit a record's keys; None for TRL's form."""
    for key, names in (('conversations', llava.NAMES), ('messages', sharegpt.NAMES), ('instruction', AlpacaNames())):
        if key in record:
            return names
    return None


def _read_side(record: dict, answer: Any, names: Names | AlpacaNames | None, sample_id: str, source: str,
               resolve: Callable, boxes: str | None) -> Sample:
    """The conversation with one of its two answers."""
    given = {'sample_id': sample_id, 'resolve': resolve, 'boxes': boxes}
    if names is None:
        messages = _prompt(record, answer, sample_id)
        if any(isinstance(message, dict) and isinstance(message.get('content'), list) for message in messages):
            return Sample(sample_id, read_messages(_with_pictures(record, messages, sample_id), **given), source)
        chat, names = {**record, 'messages': _tagged(record, messages, sample_id)}, sharegpt.NAMES
    elif isinstance(names, alpaca.AlpacaNames):
        chat, names = to_chat(record, names, sample_id), sharegpt.NAMES
        chat['messages'] += _turns(answer, names)
    else:
        before = record.get(names.messages)
        chat = {**record, names.messages: before + _turns(answer, names) if isinstance(before, list) else before}
    return read_tagged(chat, names, source=source, **given)


def _turns(answer: Any, names: Names) -> list:
    if isinstance(answer, str):
        return [{names.role_tag: names.assistant_tag, names.content_tag: answer}]
    return answer if isinstance(answer, list) else [answer]


def _prompt(record: dict, answer: Any, sample_id: str) -> list:
    """TRL's messages of one side. A side that does not begin with the answer holds the whole conversation."""
    prompt = record.get('prompt')
    if not isinstance(prompt, (str, list, type(None))):
        raise SampleError(sample_id, f'prompt: expected text or a list of messages, got {prompt!r:.100}', 'wrong_type')
    answers = _turns(answer, sharegpt.NAMES)
    is_whole = isinstance(answers[0], dict) and answers[0].get('role') != 'assistant'
    if is_whole or prompt is None:
        return answers
    before = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
    return [*before, *answers]


def _tagged(record: dict, messages: list, sample_id: str) -> list:
    """Messages with a tag for each medium: where there is none at all, in front of the first question."""
    missing = ''
    for kind in ('image', 'video'):
        tag, files = f'<{kind}>', media_list(record, kind, kind + 's', sample_id)
        if files and not any(tag in str(message.get('content')) for message in messages if isinstance(message, dict)):
            missing += tag * len(files)
    result, placed = [], not missing
    for message in messages:
        if not placed and isinstance(message, dict) and message.get('role') == 'user':
            message, placed = {**message, 'content': f'{missing}{message.get("content")}'}, True
        result.append(message)
    return result


def _with_pictures(record: dict, messages: list, sample_id: str) -> list:
    """Messages in parts, {"type": "image"} parts without a picture filled from the record's images, in order."""
    files, used, result = media_list(record, 'image', 'images', sample_id), 0, []
    for message in messages:
        if isinstance(message, dict) and isinstance(message.get('content'), list):
            parts = []
            for part in message['content']:
                if part == {'type': 'image'}:
                    part = {'type': 'image', 'image': files[used]} if used < len(files) else part
                    used += 1
                parts.append(part)
            message = {**message, 'content': parts}
        result.append(message)
    if used != len(files):
        raise SampleError(sample_id, f'{used} image parts but {len(files)} images', 'tag_count')
    return result
