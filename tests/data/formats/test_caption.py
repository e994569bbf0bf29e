"""Captions."""
import pytest

from qvlkit.data.formats.caption import read
from qvlkit.structures import Media, SampleError, Turn


def load(record):
    return read(record, sample_id='c.json[0]', source='c', resolve=lambda path: path)


def test_a_medium_then_its_caption():
    assert load({'image': 'a.jpg', 'caption': 'A cat <image>.'}).turns == [
        Turn('document', [Media('image', 'a.jpg'), 'A cat <image>.'])]
    assert load({'video': [['f0', 'f1']], 'fps': 1, 'caption': 'A cat.'}).turns[0].content[0] == Media(
        'video', ['f0', 'f1'], 1.0)


@pytest.mark.parametrize('record, reason', [
    ({'image': 'a', 'caption': ''}, 'caption: expected text'), ({'image': 'a', 'caption': ['x']}, 'caption: expected'),
    ({'caption': 'x'}, 'got 0 images and 0 videos'), ({'image': ['a', 'b'], 'caption': 'x'}, 'got 2 images')])
def test_errors(record, reason):
    with pytest.raises(SampleError, match=reason):
        load(record)
