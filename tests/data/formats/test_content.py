"""Tags to media and boxes."""
import pytest

from qvlkit.data.formats.content import ContentBuilder
from qvlkit.structures import Box, Media, SampleError


def builder(**given):
    return ContentBuilder(**{'sample_id': 'a.json[0]', 'resolve': lambda path: f'/root/{path}', 'images': [],
                             'videos': [], **given})


def test_media_are_taken_in_order_and_text_is_verbatim():
    tags = builder(images=['a', 'b'], videos=[['f0', 'f1']], fps=4)
    assert tags.content('<image>\nQ <video> ', 'user') == [
        Media('image', '/root/a'), '\nQ ', Media('video', ['/root/f0', '/root/f1'], 4.0), ' ']
    assert tags.content('<image>', 'user') == [Media('image', '/root/b')]
    tags.finish()


def test_objects_become_text_and_boxes_on_their_images():
    objects = {'ref': ['the cat'], 'bbox': [[1, 2, 3, 4], [5, 6, 7, 8]], 'image_id': [0, 1]}
    tags = builder(images=['a', 'b'], videos=['v'], objects=objects)
    question = tags.content('<image><video><image>Find <ref-object>', 'user')
    answer = tags.content('<bbox><bbox>', 'assistant')
    tags.finish()
    assert question[-2:] == ['Find ', 'the cat']
    assert answer == [Box((1, 2, 3, 4), '', 0), Box((5, 6, 7, 8), '', 2)]  # image 1 is medium 2


def test_placeholders_are_plain_text_without_objects():
    assert builder().content('<bbox> <ref-object>', 'user') == ['<bbox> <ref-object>']


def test_source_boxes_in_answers_only():
    tags = builder(images=['a'], boxes='source')
    text = '{"bbox_2d": [1, 2, 3, 4]}'
    assert tags.content('<image>' + text, 'user')[1:] == [text]
    assert tags.content(text, 'assistant') == ['{"bbox_2d": ', Box((1, 2, 3, 4)), '}']


@pytest.mark.parametrize('given, texts, reason', [
    ({'images': ['a']}, ['<image><image>'], '<image> tag number 2, but 1 images'),
    ({'images': ['a', 'b']}, ['<image>'], '1 <image> tags but 2 images'),
    ({'videos': ['v']}, ['no tag'], '0 <video> tags but 1 videos'),
    ({'images': ['a'], 'objects': {'bbox': [[1, 2, 3, 4]]}}, ['<image>'], '0 <bbox> tags but 1 entries'),
    ({'images': ['a'], 'objects': {'bbox': [[1, 2, 3, 4]]}}, ['<image><bbox><bbox>'], 'placeholder number 2'),
    ({'objects': {'bbox': [[1, 2, 3, 4]]}}, ['<bbox>'], 'objects.image_id 0: the record has 0 images'),
    ({'objects': {'bbox': [[1, 2, 3]]}}, [], r'expected \[x1, y1, x2, y2\], got \[1, 2, 3\]'),
    ({'objects': {'bbox': [[1, 2, 3, float('inf')]]}}, [], 'expected'),
    ({'objects': {'ref': [7]}}, [], 'objects.ref: expected strings, got 7'),
    ({'objects': [1]}, [], 'objects: expected a dict'),
    ({'objects': {'bbox': [[0, 0, 1, 1]], 'bbox_type': 'norm1'}}, [], "bbox_type 'norm1'"),
    ({'objects': {'bbox': [[0, 0, 1, 1]], 'image_id': [0, 0]}}, [], 'a whole number for each of 1 boxes'),
    ({'videos': ['v'], 'fps': 0}, [], 'fps: expected a number above 0'),
])
def test_errors_name_the_sample_and_the_value(given, texts, reason):
    with pytest.raises(SampleError, match=reason) as caught:
        tags = builder(**given)
        for text in texts:
            tags.content(text, 'user')
        tags.finish()
    assert str(caught.value).startswith('a.json[0]: ')


def test_tags_in_answers_are_refused():
    with pytest.raises(SampleError, match='an answer holds the tag <image>'):
        builder(images=['a']).content('<image>', 'assistant')


def test_source_boxes_need_a_picture():
    with pytest.raises(SampleError, match='no image or video comes before'):
        builder(boxes='source').content('{"bbox_2d": [1, 2, 3, 4]}', 'assistant')
