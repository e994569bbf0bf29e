"""LLaVA's records."""
import pytest

from qvlkit.data.formats.llava import read
from qvlkit.structures import Media, SampleError, Turn


def load(record, **given):
    return read(record, sample_id='a.json[0]', source='a', resolve=lambda path: path, **given)


def turns(*pairs):
    return [{'from': role, 'value': value} for role, value in pairs]


def test_one_image_or_several():
    sample = load({'image': 'a.jpg', 'conversations': turns(('human', '<image>\nQ'), ('gpt', 'A'))})
    assert sample.turns == [Turn('user', [Media('image', 'a.jpg'), '\nQ']), Turn('assistant', ['A'])]
    assert (sample.id, sample.source) == ('a.json[0]', 'a')
    sample = load({'image': ['a', 'b'], 'conversations': turns(('human', '<image><image>Q'), ('gpt', 'A'))})
    assert [item.source for item in sample.turns[0].content[:2]] == ['a', 'b']


def test_videos_are_paths_or_lists_of_frames():
    record = {'videos': ['v.mp4', ['f0', 'f1']], 'fps': [2, 5], 'conversations': turns(('human', '<video><video>'))}
    assert load(record).turns[0].content == [Media('video', 'v.mp4', 2.0), Media('video', ['f0', 'f1'], 5.0)]


def test_tools_calls_and_results():
    sample = load({'tools': '[{"name": "f"}]', 'conversations': turns(
        ('human', 'Q'), ('function_call', '{"name": "f", "arguments": {}}'), ('observation', '1'), ('gpt', 'A'))})
    assert [turn.role for turn in sample.turns] == ['system', 'user', 'assistant', 'tool', 'assistant']
    assert sample.turns[0].content[0] == 'You are a helpful assistant.'
    assert '<tools>\n{"type": "function", "function": {"name": "f"}}\n</tools>' in sample.turns[0].content[1]
    assert sample.turns[2].content == ['<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>']
    several = load({'conversations': turns(('human', 'Q'), ('function_call', '[{"name": "f"}, {"name": "g"}]'))})
    assert several.turns[1].content[0].count('<tool_call>') == 2


def test_system_turn_from_role_or_field():
    assert load({'conversations': turns(('system', 'S'), ('human', 'Q'))}).turns[0] == Turn('system', ['S'])
    assert load({'system': 'S', 'conversations': turns(('human', 'Q'))}).turns[0] == Turn('system', ['S'])


def test_a_leading_answer_is_dropped():
    sample = load({'conversations': turns(('gpt', 'Hello!'), ('human', 'Q'), ('gpt', 'A'))})
    assert [turn.role for turn in sample.turns] == ['user', 'assistant']


@pytest.mark.parametrize('record, reason', [
    ({'conversations': 'hello'}, 'conversations: expected a list of turns, got str'),
    ({'conversations': ['hello']}, r'conversations\[0\]: expected a dict'),
    ({'conversations': turns(('human', 5))}, r'conversations\[0\].value: expected text, got 5'),
    ({'conversations': turns(('humann', 'Q'))}, "unknown role 'humann'; expected one of"),
    ({'conversations': [{'from': ['x'], 'value': ''}]}, 'unknown role'),
    ({'image': 7, 'conversations': []}, 'image: expected a path or a list of paths, got 7'),
    ({'image': [['a']], 'conversations': []}, 'image: expected paths'),
    ({'image': 'a', 'images': ['b'], 'conversations': []}, "both 'image' and 'images'"),
    ({'conversations': turns(('human', 'Q'), ('function_call', 'f(1)'))}, 'turn 1: the function call is not JSON'),
    ({'tools': '{', 'conversations': turns(('human', 'Q'))}, 'tools is not JSON'),
    ({'system': 3, 'conversations': turns(('human', 'Q'))}, 'system: expected text')])
def test_errors(record, reason):
    with pytest.raises(SampleError, match=reason):
        load(record)
