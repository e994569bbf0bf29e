"""The action spaces and the check of a call."""
import json

import pytest

from qvlkit.data.actions import ACTIONS, ARGUMENTS, TOOLS, tool_description, validate

GOOD = {'coordinate': [5, 6], 'coordinate2': [7, 8], 'text': 'hi', 'keys': ['ctrl', 'c'], 'pixels': -3, 'time': 2,
        'button': 'Home', 'status': 'success'}


def call(platform, **arguments):
    return {'name': TOOLS[platform], 'arguments': arguments}


@pytest.mark.parametrize('platform', TOOLS)
def test_every_action_with_and_without_what_it_may_have(platform):
    for action, (needed, allowed, _) in ACTIONS[platform].items():
        arguments = {key: GOOD[key] for key in needed}
        assert validate(call(platform, action=action, **arguments), platform, (10, 10)) is None
        more = {**arguments, **{key: GOOD[key] for key in allowed}}
        assert validate(call(platform, action=action, **more), platform) is None
        for key in needed:
            short = {name: value for name, value in arguments.items() if name != key}
            assert validate(call(platform, action=action, **short), platform) == (
                f'{action}: the argument {key!r} is missing')
        extra = next(key for key in ARGUMENTS if key not in needed + allowed)
        assert 'is unknown' in validate(call(platform, action=action, **arguments, **{extra: GOOD[extra]}), platform)


@pytest.mark.parametrize('platform, arguments, words', [
    ('mobile', {'action': 'clck', 'coordinate': [1, 2]}, "did you mean 'click'"), ('mobile', {}, 'action: None'),
    ('mobile', {'action': ['click']}, 'is unknown'), ('mobile', {'action': 'left_click'}, 'is unknown'),
    ('mobile', {'action': 'click', 'coordinates': [1, 2]}, "'coordinate' is missing"),
    ('mobile', {'action': 'click', 'coordinate': [1, 2], 'cordinate': 1}, "did you mean 'coordinate'"),
    ('mobile', {'action': 'click', 'coordinate': [100, 2]}, 'outside the screen of 100x50, got [100, 2]'),
    ('mobile', {'action': 'click', 'coordinate': [2, 50]}, 'outside the screen of 100x50'),
    ('mobile', {'action': 'click', 'coordinate': [-1, 2]}, 'outside'),
    ('mobile', {'action': 'click', 'coordinate': [1, float('nan')]}, 'expected [x, y]'),
    ('mobile', {'action': 'click', 'coordinate': [True, 1]}, 'expected [x, y]'),
    ('mobile', {'action': 'click', 'coordinate': '1, 2'}, 'expected [x, y]'),
    ('mobile', {'action': 'system_button', 'button': 'home'}, "did you mean 'Home'"),
    ('mobile', {'action': 'type', 'text': 7}, 'type.text: expected text, got 7'),
    ('mobile', {'action': 'wait', 'time': -1}, 'expected seconds'),
    ('computer', {'action': 'terminate', 'status': 'sucess'}, "did you mean 'success'"),
    ('computer', {'action': 'terminate', 'status': ['success']}, 'expected one of success, failure'),
    ('computer', {'action': 'key', 'keys': 'ctrl+c'}, 'expected a list'),
    ('computer', {'action': 'click'}, 'is unknown'),
    ('computer', {'action': 'scroll', 'pixels': 'down'}, 'expected a number')])
def test_wrong_calls_are_told_why(platform, arguments, words):
    assert words in validate({'name': TOOLS[platform], 'arguments': arguments}, platform, (100, 50))


@pytest.mark.parametrize('wrong', [None, 'pyautogui.click(1, 2)', {}, {'name': 'mobile_use'}, {'arguments': {}},
                                   {'name': 'computer_use', 'arguments': {'action': 'wait'}},
                                   {'name': 'mobile_use', 'arguments': '{"action": "wait"}'}])
def test_what_is_no_call(wrong):
    assert validate(wrong, 'mobile').startswith(('expected a call', "name: expected 'mobile_use'"))


def test_the_platform_is_one_of_two():
    with pytest.raises(ValueError, match="'mobil' is unknown, did you mean 'mobile'"):
        validate({}, 'mobil')


@pytest.mark.parametrize('platform', TOOLS)
def test_the_description_is_a_signature_with_the_resolution(platform):
    tool = tool_description(platform, 1288, 756)
    function = json.loads(json.dumps(tool))['function']
    assert function['name'] == TOOLS[platform] and '1288x756' in function['description']
    properties = function['parameters']['properties']
    assert properties['action']['enum'] == list(ACTIONS[platform])
    used = {key for needed, allowed, _ in ACTIONS[platform].values() for key in needed + allowed}
    assert properties.keys() == used | {'action'}
