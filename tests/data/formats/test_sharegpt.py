"""ShareGPT's records."""
from qvlkit.data.formats.sharegpt import read
from qvlkit.structures import Media, Turn


def test_messages_with_images():
    record = {'messages': [{'role': 'user', 'content': '<image>Q'}, {'role': 'assistant', 'content': 'A'}],
              'images': ['a.jpg']}
    sample = read(record, sample_id='a.json[0]', source='a', resolve=lambda path: path)
    assert sample.turns == [Turn('user', [Media('image', 'a.jpg'), 'Q']), Turn('assistant', ['A'])]
