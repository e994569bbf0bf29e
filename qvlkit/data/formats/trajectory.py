"""A screen agent's trajectory: what it was asked to do, and each screenshot with what it thought and did.

{"task": "...", "platform": "mobile", "steps": [{"screenshot": "0.png", "thought": "...", "action": {"action": "click",
"coordinate": [x, y]}}, ..., {"screenshot": "9.png", "action": {"action": "terminate", "status": "success"}}]}.
Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1 and the cookbook `mobile_agent`.

A step becomes a user turn (the task, what was done so far, the screenshot) and an answer (the thought, the call).
Coordinates are points on their screenshot, so that they are rescaled with it, in the history too.
"""
import dataclasses
import json
from collections.abc import Callable
from typing import Any

from qvlkit.data.actions import COORDINATES, TOOLS, check_platform, tool_description, validate
from qvlkit.data.formats.grounding_record import SPACES
from qvlkit.data.formats.tagged import tools_prompt
from qvlkit.data.transforms.chat_template import DEFAULT_SYSTEM
from qvlkit.data.transforms.load_media import MediaError
from qvlkit.structures import Media, Point, Sample, SampleError, Turn


def read(record: dict, *, sample_id: str, source: str, resolve: Callable[[str], Any],
         boxes: str | None = None) -> Sample:
    """One trajectory -> Sample, its platform in `extra`; see `announce` for the system turn.

    Args:
        boxes: The space of the coordinates where the record names none; None stands for 'source'.

    Raises:
        SampleError: Wrong types, a bad path, an action that its platform does not have, or no terminate at the end.
    """
    task, steps, space = record.get('task'), record.get('steps'), record.get('space') or boxes or 'source'
    if not isinstance(task, str) or not task.strip():
        raise SampleError(sample_id, f'task: expected text, got {task!r:.100}', 'wrong_type')
    if not isinstance(steps, list) or not steps:
        raise SampleError(sample_id, f'steps: expected a list of steps, got {steps!r:.100}', 'wrong_type')
    if space not in SPACES:
        raise SampleError(sample_id, f'space: {space!r:.100}: expected one of {", ".join(SPACES)}', 'bad_box')
    try:
        platform = check_platform(record.get('platform'))
    except ValueError as error:
        raise SampleError(sample_id, str(error), 'bad_action') from error
    turns: list[Turn] = []
    history: list = []
    for index, step in enumerate(steps):
        where, is_last = f'steps[{index}]', index == len(steps) - 1
        screenshot, thought, call = _read_step(step, where, platform, sample_id, resolve)
        if (call['arguments']['action'] == 'terminate') != is_last:
            raise SampleError(sample_id, f"{where}.action: expected 'terminate' at the end and there only, got "
                              f'{call["arguments"]["action"]!r}', 'bad_action')
        arguments = _arguments(call['arguments'], index, space)
        turns.append(Turn('user', _joined([f'The user query: {task}\nTask progress (what you have done so far): ',
                                           *(history or ['nothing']), '\n', screenshot])))
        answer = [f'{thought}\n' if thought else '', f'<tool_call>\n{{"name": "{call["name"]}", "arguments": ',
                  *arguments, '}\n</tool_call>']
        turns.append(Turn('assistant', _joined(answer)))
        history += [f'{"; " if history else ""}Step {index + 1}: ', *arguments]
    return Sample(sample_id, turns, source, {'platform': platform})


def announce(sample: Sample, size: tuple[int, int]) -> Sample:
    """The sample with a system turn that announces its platform's actions.

    Args:
        sample: From `read`.
        size: (width, height) of the first screenshot as the model sees it, RESIZED.
    """
    text = DEFAULT_SYSTEM + tools_prompt([tool_description(sample.extra['platform'], *size)], sample.id)
    return dataclasses.replace(sample, turns=[Turn('system', [text]), *sample.turns])


def _read_step(step: Any, where: str, platform: str, sample_id: str, resolve: Callable) -> tuple[Media, str, dict]:
    if not isinstance(step, dict):
        raise SampleError(sample_id, f'{where}: expected a dict, got {type(step).__name__}', 'wrong_type')
    thought, action = step.get('thought') or '', step.get('action')
    if not isinstance(thought, str):
        raise SampleError(sample_id, f'{where}.thought: expected text, got {thought!r:.100}', 'wrong_type')
    if not isinstance(step.get('screenshot'), str):
        raise SampleError(sample_id, f'{where}.screenshot: expected a path, got {step.get("screenshot")!r:.100}',
                          'wrong_type')
    call = action if isinstance(action, dict) and 'arguments' in action else {
        'name': TOOLS[platform], 'arguments': action}
    error = validate(call, platform)
    if error:
        raise SampleError(sample_id, f'{where}.action: {error}', 'bad_action')
    try:
        return Media('image', resolve(step['screenshot'])), thought, call
    except MediaError as problem:
        raise SampleError(sample_id, f'{where}: {problem.reason}', problem.kind) from problem


def _arguments(arguments: dict, media_index: int, space: str) -> list:
    """A call's arguments as JSON, with its coordinates as points between the pieces."""
    pieces: list = ['{']
    for key, value in arguments.items():
        pieces.append(('' if len(pieces) == 1 else ', ') + f'{json.dumps(key)}: ')
        is_point = key in COORDINATES
        pieces.append(Point(tuple(map(float, value)), '', media_index, space) if is_point
                      else json.dumps(value, ensure_ascii=False))
    return [*pieces, '}']


def _joined(content: list) -> list:
    """Content with neighbouring texts as one, and copies of its points."""
    result: list = []
    for item in content:
        if isinstance(item, str) and result and isinstance(result[-1], str):
            result[-1] += item
        elif item != '':
            result.append(dataclasses.replace(item) if isinstance(item, Point) else item)
    return result
