"""M-RoPE whose temporal ids count frame groups: ids and rotations against plain loops."""
import math

import pytest

from qvlkit.models.position_encodings.frame_index_mrope import FrameIndexMRoPE
from qvlkit.structures import TextSpan, VisionSpan


def test_ids_equal_a_loop_over_tokens():
    encoding = FrameIndexMRoPE(8, sections=[1, 1, 2], theta=100.0)
    ids = encoding.ids([TextSpan(2), VisionSpan((3, 2, 4), 0.4), TextSpan(2)])
    expected = [(0, 0, 0), (1, 1, 1)]
    for group in range(3):
        expected += [(2 + group, 2 + row, 2 + column) for row in range(2) for column in range(4)]
    after = 1 + max(max(place) for place in expected)
    expected += [(after,) * 3, (after + 1,) * 3]
    assert [tuple(place) for place in ids.T.tolist()] == expected


def test_each_frequency_turns_by_the_id_of_its_axis():
    encoding = FrameIndexMRoPE(8, sections=[1, 1, 2], theta=100.0)
    ids = encoding.ids([TextSpan(1), VisionSpan((2, 2, 2), 1.0)])
    cosine, sine = encoding.rotary(ids)
    for token in range(ids.shape[1]):
        for index, axis in enumerate((0, 1, 2, 2)):
            angle = int(ids[axis, token]) * 100.0 ** (-2 * index / 8)
            assert float(cosine[token, index]) == pytest.approx(math.cos(angle), abs=1e-6)
            assert float(sine[token, index]) == pytest.approx(math.sin(angle), abs=1e-6)
