"""Alpaca's instructions."""
import pytest

from qvlkit.data.formats.alpaca import read
from qvlkit.structures import Media, SampleError, Turn


def load(record):
    return read(record, sample_id='a.json[0]', source='a', resolve=lambda path: path)


def test_instruction_input_history_and_system():
    sample = load({'instruction': 'Sort.', 'input': '3 1', 'output': '1 3', 'system': 'S', 'history': [['Q', 'A']]})
    assert sample.turns == [Turn('system', ['S']), Turn('user', ['Q']), Turn('assistant', ['A']),
                            Turn('user', ['Sort.\n3 1']), Turn('assistant', ['1 3'])]
    assert load({'instruction': 'Q', 'input': '', 'output': 'A'}).turns[0] == Turn('user', ['Q'])


def test_pictures():
    for key, value in (('images', ['a.jpg']), ('image', 'a.jpg')):
        sample = load({'instruction': '<image>Q', 'output': 'A', key: value})
        assert sample.turns[0] == Turn('user', [Media('image', 'a.jpg'), 'Q'])


@pytest.mark.parametrize('record, reason', [
    ({'instruction': 'Q', 'output': None}, 'output: expected text, got None'),
    ({'instruction': 3, 'output': 'A'}, 'instruction: expected text'),
    ({'instruction': 'Q', 'input': 3, 'output': 'A'}, 'input: expected text, got 3'),
    ({'instruction': 'Q', 'output': 'A', 'history': ['x']}, r'history: expected a list of \[question, answer\]'),
    ({'instruction': '<image>Q', 'output': 'A'}, r'a.json\[0\]: <image> tag number 1, but 0 images'),
    ({'instruction': 'Q', 'output': 'A', 'images': ['a']}, r'a.json\[0\]: 0 <image> tags but 1 images')])
def test_errors(record, reason):
    with pytest.raises(SampleError, match=reason):
        load(record)
