"""Records whose turns are tagged text, read by a table of names: LLaVA and ShareGPT differ in names alone."""
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qvlkit.data.formats.content import ContentBuilder
from qvlkit.data.transforms.chat_template import DEFAULT_SYSTEM
from qvlkit.structures import Sample, SampleError, Turn


@dataclass(frozen=True)
class Names:
    """Where a record keeps what, and what its roles are called (LLaMA-Factory's `columns` and `tags`)."""
    messages: str
    role_tag: str
    content_tag: str
    user_tag: str
    assistant_tag: str
    observation_tag: str = 'observation'
    function_tag: str = 'function_call'
    system_tag: str = 'system'
    images: str = 'images'
    videos: str = 'videos'
    system: str = 'system'
    tools: str = 'tools'
    chosen: str = 'chosen'
    rejected: str = 'rejected'


def read_tagged(record: dict, names: Names, *, sample_id: str, source: str, resolve: Callable[[str], Any],
                boxes: str | None = None) -> Sample:
    """One record -> Sample.

    A leading assistant turn is dropped, as in the official training code. `function_call` turns become assistant turns
    with <tool_call> blocks, `observation` turns become 'tool' turns, and `tools` are announced in the system turn.

    Raises:
        SampleError: Wrong types, no turns, an unknown role, tags that do not match the media, a bad media path.
    """
    messages = record.get(names.messages)
    if not isinstance(messages, list):
        raise SampleError(sample_id, f'{names.messages}: expected a list of turns, got '
                          f'{type(messages).__name__}', 'wrong_type')
    builder = ContentBuilder(
        sample_id=sample_id, resolve=resolve, images=media_list(record, 'image', names.images, sample_id),
        videos=media_list(record, 'video', names.videos, sample_id), fps=record.get('fps', 2.0),
        objects=record.get('objects'), boxes=boxes)
    roles = _roles(names)
    turns: list[Turn] = []
    for index, message in enumerate(messages):
        role, text, is_call = _read_message(message, index, names, roles, sample_id)
        if role == 'assistant' and not any(turn.role != 'system' for turn in turns):
            continue
        turns.append(Turn(role, [_tool_calls(text, index, sample_id)] if is_call else builder.content(text, role)))
    builder.finish()
    _add_system(turns, record.get(names.system), record.get(names.tools), sample_id)
    return Sample(sample_id, turns, source)


def media_list(record: dict, single: str, several: str, sample_id: str) -> list:
    """A record's images or videos, under either name, as a list; a video may itself be a list of frames."""
    found = [key for key in dict.fromkeys((single, several)) if record.get(key) is not None]
    if len(found) > 1:
        raise SampleError(sample_id, f'both {found[0]!r} and {found[1]!r} are given', 'wrong_type')
    if not found:
        return []
    value = record[found[0]]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list):
        raise SampleError(sample_id, f'{found[0]}: expected a path or a list of paths, got {value!r:.200}',
                          'wrong_type')
    for item in values:
        frames = item if isinstance(item, list) and single == 'video' and item else [item]
        if not all(isinstance(frame, str) for frame in frames):
            raise SampleError(sample_id, f'{found[0]}: expected paths, got {item!r:.200}', 'wrong_type')
    return values


def _roles(names: Names) -> dict[str, tuple[str, bool]]:
    """Role name in the record -> (our role, whether the text is a function call)."""
    return {'tool': ('tool', False), 'system': ('system', False), names.system_tag: ('system', False),
            names.user_tag: ('user', False), names.assistant_tag: ('assistant', False),
            names.observation_tag: ('tool', False), names.function_tag: ('assistant', True)}


def _read_message(message: Any, index: int, names: Names, roles: dict, sample_id: str) -> tuple[str, str, bool]:
    where = f'{names.messages}[{index}]'
    if not isinstance(message, dict):
        raise SampleError(sample_id, f'{where}: expected a dict, got {type(message).__name__}', 'wrong_type')
    role, text = message.get(names.role_tag), message.get(names.content_tag)
    if not isinstance(role, str) or role not in roles:
        raise SampleError(sample_id, f'{where}.{names.role_tag}: unknown role {role!r:.100}; expected one of '
                          f'{", ".join(roles)}', 'unknown_role')
    if not isinstance(text, str):
        raise SampleError(sample_id, f'{where}.{names.content_tag}: expected text, got {text!r:.100}', 'wrong_type')
    our_role, is_call = roles[role]
    return our_role, text, is_call


def _tool_calls(text: str, index: int, sample_id: str) -> str:
    """A function call's JSON, or a list of them, in <tool_call> blocks."""
    if '<tool_call>' in text:
        return text
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SampleError(sample_id, f'turn {index}: the function call is not JSON: {error}', 'bad_json') from error
    bodies = [json.dumps(call, ensure_ascii=False) for call in calls] if isinstance(calls, list) else [text.strip()]
    return '\n'.join(f'<tool_call>\n{body}\n</tool_call>' for body in bodies)


def _add_system(turns: list[Turn], system: Any, tools: Any, sample_id: str) -> None:
    """Put a record's system text and its tools in front of its turns."""
    if system is not None and not isinstance(system, str):
        raise SampleError(sample_id, f'system: expected text, got {system!r:.100}', 'wrong_type')
    has_system = bool(turns) and turns[0].role == 'system'
    if system and not has_system:
        turns.insert(0, Turn('system', [system]))
        has_system = True
    announced = tools_prompt(tools, sample_id) if tools else ''
    if announced and not has_system:
        turns.insert(0, Turn('system', [DEFAULT_SYSTEM]))
    if announced:
        turns[0].content.append(announced)


def tools_prompt(tools: Any, sample_id: str) -> str:
    """Qwen2.5's announcement of function signatures, to follow the system text. `tools`: JSON text, or a list."""
    try:
        signatures = json.loads(tools) if isinstance(tools, str) else tools
    except (ValueError, RecursionError) as error:
        raise SampleError(sample_id, f'tools is not JSON: {error}', 'bad_json') from error
    if not isinstance(signatures, list):
        raise SampleError(sample_id, f'tools: expected a list of signatures, got {signatures!r:.100}', 'wrong_type')
    if not signatures:
        return ''
    lines = '\n'.join(json.dumps(_signature(signature), ensure_ascii=False) for signature in signatures)
    return ('\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n'
            'You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n' + lines +
            '\n</tools>\n\nFor each function call, return a json object with function name and arguments within '
            '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
            '<args-json-object>}\n</tool_call>')


def _signature(tool: Any) -> Any:
    if isinstance(tool, dict) and 'type' not in tool:
        return {'type': 'function', 'function': tool}
    return tool
