"""Boxes scaled to the resized picture."""
import pytest

from qvlkit.data.transforms.boxes import resized_box, scale_box
from qvlkit.structures import Box

SIZES = [((640, 428), (644, 420))]


def test_golden_box_of_the_released_code():
    assert scale_box((146, 137, 615, 415), *SIZES[0]) == (147, 134, 619, 407)


def test_clamped_to_the_picture():
    assert scale_box((-5, -1, 640, 428), *SIZES[0]) == (0, 0, 643, 419)


def test_resized_boxes_are_rounded_but_not_scaled():
    box = resized_box(Box((10.4, 20.6, 30.0, 900.0), 'a', 0, 'resized'), SIZES)
    assert box == Box((10, 21, 30, 419), 'a', 0, 'resized')


@pytest.mark.parametrize('box, reason', [
    (Box((0, 0, 1, 1), media_index=1), r'box \[0, 0, 1, 1\] is on medium 1, but the sample has 1'),
    (Box((0, 0, 1, float('nan'))), '4 finite numbers'),
    (Box((0, 0, 1, 1), space='relative'), "box space 'relative'"),
])
def test_errors_name_the_value(box, reason):
    with pytest.raises(ValueError, match=reason):
        resized_box(box, SIZES)
