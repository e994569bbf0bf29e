"""Records of objects and their places."""
import pytest

from qvlkit.data.formats.grounding import regions_to_text
from qvlkit.data.formats.grounding_record import read
from qvlkit.structures import Box, Media, Point, Polygon, SampleError, Turn


def load(objects, **given):
    boxes = given.pop('boxes', None)
    record = {'image': 'a.jpg', 'objects': objects, **given}
    return read(record, sample_id='g.json[0]', source='g', resolve=lambda path: path, boxes=boxes)


def test_regions_and_what_is_not_there():
    sample = load([{'bbox': [1, 2, 3, 4], 'label': 'cat'}, {'polygon': [[1, 2], [3, 4], [5, 6]], 'label': 'leaf'},
                   {'bbox': None, 'label': 'dog'}, {'bbox': [5, 6, 7, 8], 'label': 'cat'}])
    assert sample.turns == [
        Turn('user', [Media('image', 'a.jpg'), '\nLocate every instance of: cat, leaf, dog.']),
        Turn('assistant', [Box((1, 2, 3, 4), 'cat'), Polygon((1, 2, 3, 4, 5, 6), 'leaf'), Box((5, 6, 7, 8), 'cat'),
                           '\nThere is no dog in the picture.'])]
    assert len(regions_to_text(sample.turns[1].content)) == 2  # one list, one sentence
    assert load([{'bbox': None, 'label': 'dog'}]).turns[1].content == ['There is no dog in the picture.']


def test_points_spaces_and_questions():
    sample = load([{'point': [0.5, 0.25], 'label': 'eye'}], space='unit', question='Where? <image>')
    assert sample.turns[0].content == ['Where? ', Media('image', 'a.jpg')]
    assert sample.turns[1].content == [Point((0.5, 0.25), 'eye', 0, 'unit')]
    sample = load([{'point': [5, 6]}, {'point': [7, 8]}], boxes='thousand')
    assert sample.turns[0].content[1] == '\nPoint to every instance of: object.'
    assert sample.turns[1].content == [Point((5, 6), '', 0, 'thousand'), '\n', Point((7, 8), '', 0, 'thousand')]


@pytest.mark.parametrize('objects, given, reason', [
    ([], {}, 'objects: expected a list of objects'), ({'ref': []}, {}, 'objects: expected a list'),
    (['x'], {}, r'objects\[0\]: expected a dict'), ([{'label': 'a'}], {}, "one of 'bbox', 'point' and 'polygon'"),
    ([{'bbox': [1, 2, 3, 4], 'point': [1, 2]}], {}, 'one of'),
    ([{'bbox': None}], {}, r'objects\[0\].label: expected text'),
    ([{'bbox': [1, 2, 3], 'label': 'a'}], {}, r'objects\[0\].bbox: expected \[x1, y1, x2, y2\]'),
    ([{'bbox': [5, 2, 3, 4], 'label': 'a'}], {}, 'x1 <= x2'), ([{'point': [1, float('nan')]}], {}, 'expected'),
    ([{'polygon': [[1, 2], [3, 4]]}], {}, '3 corners or more'), ([{'point': [1, 2]}], {'image': ['a']}, 'one path'),
    ([{'point': [1, 2]}], {'space': 'sorce'}, "'sorce' is unknown, did you mean 'source'"),
    ([{'point': [1, 2]}], {'question': 7}, 'question: expected text'),
    ([{'point': [1, 2]}], {'question': '<image><image>'}, 'tag number 2')])
def test_errors(objects, given, reason):
    with pytest.raises(SampleError, match=reason):
        load(objects, **given)
