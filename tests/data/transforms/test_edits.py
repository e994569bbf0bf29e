"""Edits: sizes, points and pixels agree; edits travel as JSON."""
import json

import numpy as np
import pytest
from PIL import Image

from qvlkit.data.transforms.edits import Crop, Flip, Resize, apply_edits, from_json, to_json

EDITS = (Crop(10, 5, 110, 65), Flip(), Resize(50, 90), Flip(), Crop(5, 10, 45, 80))


def spot_picture(x, y, size=(120, 80)):
    """Black, with a white square of 9 pixels around (x, y)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[y - 4:y + 5, x - 4:x + 5] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize('count', range(len(EDITS) + 1))
def test_a_point_goes_where_its_pixels_go(count):
    edits, size, spot = EDITS[:count], (120, 80), (60.5, 40.5)
    for edit in edits:
        spot, size = edit.move(spot, size), edit.size(size)
    picture = apply_edits(spot_picture(60, 40), edits)
    assert picture.size == size
    y, x = np.nonzero(np.asarray(picture)[..., 0] > 127)
    assert (x.mean() + 0.5, y.mean() + 0.5) == pytest.approx(spot, abs=1.0)


def test_edits_travel_as_json():
    assert from_json(json.loads(json.dumps(to_json(EDITS)))) == EDITS
