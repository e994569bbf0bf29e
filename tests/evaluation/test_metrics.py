import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlkit.evaluation.metrics import BoxIoU, ExactMatch, box_iou, default_metric, wilson_interval
from qvlkit.registry import METRICS
from qvlkit.structures import Box, Sample

BOXES = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(51, 100)] * 2)


def sample(answer):
    return Sample('s', [], extra={'answer': answer})


@pytest.mark.parametrize(('answer', 'score'), [
    ('Red circle', 1.0), ('  red \n circle.', 1.0), ('red circles', 0.0), ('a red circle', 0.0), ('', 0.0)])
def test_exact_match(answer, score):
    assert METRICS.build({'type': 'ExactMatch'}).score(sample('red circle'), answer) == score


def test_box_iou_by_hand():
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert box_iou((10, 10, 0, 0), (0, 0, 10, 10)) == 0.0  # inverted: not a box
    assert box_iou((-5, -5, -1, -1), (0, 0, 10, 10)) == 0.0


@given(BOXES, BOXES)
def test_box_iou_is_symmetric_and_one_only_for_equal_boxes(first, second):
    iou = box_iou(first, second)
    assert iou == box_iou(second, first) and 0 < iou <= 1
    assert (iou == 1) == (first == second)


def test_boxes_are_compared_in_the_pixels_the_model_sees():
    metric, sizes = METRICS.build({'type': 'BoxIoU'}), [((200, 100), (112, 56))]
    expected = sample(Box((100, 50, 200, 100)))  # resized: 56 28 112 56
    assert metric.score(expected, '[{"bbox_2d": [56, 28, 111, 55]}]', sizes) == 1.0
    assert metric.score(expected, '[{"bbox_2d": [100, 50, 200, 100]}]', sizes) == 0.0
    assert metric.score(expected, 'it is at {"bbox_2d": [50, 28, 112, 56], "label": "x"}', sizes) == 1.0


@pytest.mark.parametrize('answer', [
    '', 'red', '[{"bbox_2d": [1, 2, 3]}]', '[{"bbox_2d": [', '[[[[', '{"bbox_2d": null}'])
def test_an_answer_without_a_box_is_wrong(answer):
    assert BoxIoU().score(sample(Box((0, 0, 10, 10))), answer, [((28, 28), (28, 28))]) == 0.0


def test_only_the_first_box_counts():
    answer = '[{"bbox_2d": [50, 50, 60, 60]}, {"bbox_2d": [0, 0, 10, 10]}]'
    assert BoxIoU().score(sample(Box((0, 0, 10, 10))), answer, [((112, 112), (112, 112))]) == 0.0


def test_threshold():
    expected, sizes = sample(Box((0, 0, 100, 100))), [((112, 112), (112, 112))]
    answer = '[{"bbox_2d": [0, 0, 100, 60]}]'
    assert BoxIoU(0.5).score(expected, answer, sizes) == 1.0 and BoxIoU(0.7).score(expected, answer, sizes) == 0.0
    with pytest.raises(ValueError, match='threshold'):
        BoxIoU(0.0)


def test_wilson_interval():
    low, high = wilson_interval(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-3), pytest.approx(0.9433, abs=1e-3))
    assert wilson_interval(0, 20)[0] == 0.0 and wilson_interval(20, 20)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_default_metric_follows_the_answer():
    assert isinstance(default_metric(sample(Box((0, 0, 1, 1)))), BoxIoU)
    assert isinstance(default_metric(sample('x')), ExactMatch)
