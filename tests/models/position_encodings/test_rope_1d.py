"""Plain rotary positions: ids and rotations against plain loops."""
import math

import pytest

from qvlkit.models.position_encodings.rope_1d import RoPE1D
from qvlkit.structures import TextSpan, VisionSpan


def test_ids_count_every_token_and_every_frequency_turns_by_them():
    encoding = RoPE1D(8, theta=100.0)
    ids = encoding.ids([TextSpan(2), VisionSpan((1, 2, 2)), TextSpan(1)])
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    cosine, sine = encoding.rotary(ids)
    assert cosine.shape == sine.shape == (7, 4)
    for token in range(7):
        for index in range(4):
            angle = token * 100.0 ** (-2 * index / 8)
            assert float(cosine[token, index]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sine[token, index]) == pytest.approx(math.sin(angle), abs=1e-6)
