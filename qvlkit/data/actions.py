"""The two action spaces of a screen agent, as data, and the check of a call against them.

Source: Qwen2.5-VL (arXiv 2502.13923) section 2.2.1 and its cookbooks `mobile_agent` and `computer_use`. A call is
{"name": "mobile_use", "arguments": {"action": "click", "coordinate": [x, y]}}; coordinates are pixels of the screenshot
as the model sees it, after resizing. Nothing a model writes is ever run as code: a call is JSON or an error.
"""
import math
from typing import Any

from qvlkit.registry import near_names

TOOLS = {'mobile': 'mobile_use', 'computer': 'computer_use'}
COORDINATES = ('coordinate', 'coordinate2')
BUTTONS = ('Back', 'Home', 'Menu', 'Enter')
STATUS = ('success', 'failure')

# platform -> action -> (arguments it needs, arguments it may have, what it does)
ACTIONS: dict[str, dict[str, tuple[tuple[str, ...], tuple[str, ...], str]]] = {
    'mobile': {
        'key': (('text',), (), 'Send a key event of the device, for example "volume_up", "power" or "clear".'),
        'click': (('coordinate',), (), 'Click the point (x, y).'),
        'long_press': (('coordinate',), ('time',), 'Press the point (x, y) for `time` seconds.'),
        'swipe': (('coordinate', 'coordinate2'), (), 'Swipe from (x, y) to (x2, y2).'),
        'type': (('text',), (), 'Type the text into the active input.'),
        'system_button': (('button',), (), 'Press a system button.'),
        'open': (('text',), (), 'Open the app of that name.'),
        'wait': ((), ('time',), 'Wait `time` seconds for the screen to change.'),
        'terminate': (('status',), (), 'End the task and report its status.')},
    'computer': {
        'key': (('keys',), (), 'Press the keys in order and release them in reverse order.'),
        'type': (('text',), (), 'Type the text.'),
        'mouse_move': (('coordinate',), (), 'Move the cursor to the point (x, y).'),
        'left_click': ((), ('coordinate',), 'Click the left button, at (x, y) if it is given.'),
        'left_click_drag': (('coordinate',), (), 'Drag with the left button to the point (x, y).'),
        'right_click': ((), ('coordinate',), 'Click the right button, at (x, y) if it is given.'),
        'middle_click': ((), ('coordinate',), 'Click the middle button, at (x, y) if it is given.'),
        'double_click': ((), ('coordinate',), 'Double-click the left button, at (x, y) if it is given.'),
        'scroll': (('pixels',), ('coordinate',), 'Scroll by `pixels`: up if above 0, down if below.'),
        'wait': ((), ('time',), 'Wait `time` seconds for the screen to change.'),
        'terminate': (('status',), (), 'End the task and report its status.')}}

# argument -> its JSON schema
ARGUMENTS: dict[str, dict] = {
    'coordinate': {'type': 'array', 'description': '(x, y): pixels from the left edge and from the top edge.'},
    'coordinate2': {'type': 'array', 'description': '(x, y): where a swipe ends.'},
    'text': {'type': 'string', 'description': 'What to type, the name of a key event, or the name of an app.'},
    'keys': {'type': 'array', 'description': 'Names of keys.'},
    'pixels': {'type': 'number', 'description': 'How far to scroll: up if above 0, down if below.'},
    'time': {'type': 'number', 'description': 'Seconds.'},
    'button': {'type': 'string', 'enum': list(BUTTONS), 'description': 'A system button.'},
    'status': {'type': 'string', 'enum': list(STATUS), 'description': 'How the task ended.'}}


def validate(call: dict, platform: str, size: tuple[int, int] | None = None) -> str | None:
    """What is wrong with a call, in words; None if nothing is.

    Args:
        call: {'name': ..., 'arguments': {...}}, as parsed from JSON.
        platform: 'mobile' or 'computer'.
        size: (width, height) of the screen that the coordinates refer to, to check that they lie on it.

    Raises:
        ValueError: The platform is unknown.
    """
    tool = TOOLS[check_platform(platform)]
    if not isinstance(call, dict) or not isinstance(call.get('arguments'), dict):
        return f"expected a call with 'name' and 'arguments', got {call!r:.200}"
    if call.get('name') != tool:
        return f'name: expected {tool!r}, got {call.get("name")!r:.100}'
    arguments = call['arguments']
    action, actions = arguments.get('action'), ACTIONS[platform]
    if not isinstance(action, str) or action not in actions:
        near = near_names(action, list(actions)) if isinstance(action, str) else ''
        return f'action: {action!r:.100} is unknown{near}; expected one of {", ".join(actions)}'
    needed, allowed, _ = actions[action]
    for key in needed:
        if key not in arguments:
            return f'{action}: the argument {key!r} is missing'
    for key, value in arguments.items():
        if key == 'action':
            continue
        if key not in needed + allowed:
            near = near_names(str(key), list(needed + allowed))
            expected = ', '.join(needed + allowed) or 'none'
            return f'{action}: the argument {key!r:.100} is unknown{near}; expected {expected}'
        error = _check_argument(key, value, size)
        if error:
            return f'{action}.{key}: {error}, got {value!r:.200}'
    return None


def check_platform(platform: str) -> str:
    """`platform`; ValueError with near names if it is none."""
    if platform not in TOOLS:
        near = near_names(platform, list(TOOLS)) if isinstance(platform, str) else ''
        raise ValueError(f'platform: {platform!r:.100} is unknown{near}; expected one of {", ".join(TOOLS)}')
    return platform


def tool_description(platform: str, width: int, height: int) -> dict:
    """The function signature that tells a model its action space.

    Args:
        platform: 'mobile' or 'computer'.
        width, height: Of the RESIZED screenshot: the screen that the model's coordinates refer to.
    """
    actions = ACTIONS[check_platform(platform)]
    used = {key for needed, allowed, _ in actions.values() for key in needed + allowed}
    device = {'mobile': 'touchscreen of a mobile device', 'computer': 'mouse and keyboard of a computer'}[platform]
    lines = '\n'.join(f'* `{action}`: {what}' for action, (_, _, what) in actions.items())
    properties = {'action': {'type': 'string', 'enum': list(actions), 'description': f'The action:\n{lines}'}}
    for key, schema in ARGUMENTS.items():
        if key in used:
            needing = ', '.join(action for action, (needed, _, _) in actions.items() if key in needed)
            note = f' Required by: {needing}.' if needing else ''
            properties[key] = {**schema, 'description': schema['description'] + note}
    return {'type': 'function', 'function': {
        'name': TOOLS[platform],
        'description': f'Use the {device}, and see it in screenshots.\n'
                       f"* The screen's resolution is {width}x{height}.\n"
                       '* Apps may take time to start or to respond: wait, and look at the next screenshot.\n'
                       '* Click in the middle of buttons, links and icons, not on their edges.',
        'parameters': {'type': 'object', 'properties': properties, 'required': ['action']}}}


def _check_argument(key: str, value: Any, size: tuple[int, int] | None) -> str | None:
    if key in COORDINATES:
        if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(map(_is_number, value)):
            return 'expected [x, y]'
        limits = size or (math.inf, math.inf)
        if not all(0 <= number < limit for number, limit in zip(value, limits)):
            return f'outside the screen of {size[0]}x{size[1]}' if size else 'outside the screen: below 0'
    elif key == 'keys':
        if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
            return 'expected a list of names of keys'
    elif key in ('time', 'pixels'):
        if not _is_number(value) or (key == 'time' and value < 0):
            return 'expected seconds, 0 or more' if key == 'time' else 'expected a number'
    elif key == 'text':
        return None if isinstance(value, str) else 'expected text'
    elif value not in ARGUMENTS[key]['enum']:
        near = near_names(value, ARGUMENTS[key]['enum']) if isinstance(value, str) else ''
        return f'expected one of {", ".join(ARGUMENTS[key]["enum"])}{near}'
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
