"""Messages with typed parts."""
import pytest

from qvlkit.data.formats.media_paths import MediaRoot
from qvlkit.data.formats.openai import read, read_messages
from qvlkit.structures import Box, Media, SampleError, Turn


def load(messages, **given):
    return read_messages(messages, sample_id='m', resolve=lambda source: source, **given)


def test_parts_in_order_and_text_verbatim():
    messages = [{'role': 'system', 'content': 'S'},
                {'role': 'user', 'content': [{'type': 'text', 'text': '<image>a'}, {'type': 'image', 'image': 'x'},
                                             {'type': 'image_url', 'image_url': {'url': 'y'}},
                                             {'type': 'image_url', 'image_url': 'z'},
                                             {'type': 'video', 'video': ['f'], 'fps': 4}, 'b']},
                {'role': 'assistant', 'content': [{'type': 'text', 'text': 'A'}]}]
    assert load(messages) == [
        Turn('system', ['S']), Turn('user', ['<image>a', Media('image', 'x'), Media('image', 'y'), Media('image', 'z'),
                                             Media('video', ['f'], 4.0), 'b']), Turn('assistant', ['A'])]


def test_boxes_in_answers():
    messages = [{'role': 'user', 'content': [{'type': 'image', 'image': 'x'}]},
                {'role': 'assistant', 'content': '{"bbox_2d": [1, 2, 3, 4]}'}]
    assert load(messages)[1].content == ['{"bbox_2d": [1, 2, 3, 4]}']
    assert load(messages, boxes='source')[1].content[1] == Box((1, 2, 3, 4))


def test_urls_are_refused_and_base64_is_read(tmp_path):
    def record(url):
        return {'messages': [{'role': 'user', 'content': [{'type': 'image_url', 'image_url': {'url': url}}]}]}
    resolve = MediaRoot(tmp_path).resolve
    sample = read(record('data:image/png;base64,aGk='), sample_id='m', source='s', resolve=resolve)
    assert sample.turns[0].content[0].source == b'hi'
    with pytest.raises(SampleError, match='is a URL') as caught:
        read(record('http://example.org/a.png'), sample_id='m', source='s', resolve=resolve)
    assert caught.value.kind == 'url_refused'


@pytest.mark.parametrize('messages, reason', [
    ('x', 'messages: expected a list'), (['x'], r'messages\[0\]: expected a dict'),
    ([{'role': 'gpt', 'content': 'x'}], "unknown role 'gpt'"), ([{'role': 'user', 'content': 5}], 'expected text or'),
    ([{'role': 'user', 'content': [5]}], r'messages\[0\].content\[0\]: expected a dict'),
    ([{'role': 'user', 'content': [{'type': 'audio'}]}], "got 'audio'"),
    ([{'role': 'user', 'content': [{'type': 'text', 'text': 3}]}], 'expected text, got 3'),
    ([{'role': 'user', 'content': [{'type': 'image'}]}], 'an image part without an image'),
    ([{'role': 'user', 'content': [{'type': 'video', 'video': ['f'], 'fps': -1}]}], 'fps: expected a number above 0')])
def test_errors(messages, reason):
    with pytest.raises(SampleError, match=reason):
        load(messages)
