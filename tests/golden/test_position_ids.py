"""Position ids of the released training semantics: seconds are multiplied first and truncated last.

Values computed with transformers 4.49 to 4.51 and the official training code. Later versions of transformers differ.
"""
import pytest
import torch

from qvlkit.models.position_encodings.absolute_time_mrope import AbsoluteTimeMRoPE
from qvlkit.structures import TextSpan, VisionSpan


@pytest.fixture
def encoding():
    return AbsoluteTimeMRoPE(128)


def test_image(encoding):
    """a b VS, an image of 2 x 3 cells, VE c d."""
    ids = encoding.ids([TextSpan(3), VisionSpan((1, 2, 3)), TextSpan(3)])
    assert ids.tolist() == [[0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8],
                            [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8],
                            [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8]]
    assert int(ids.max()) + 1 - ids.shape[1] == -3
    assert ids.dtype == torch.int64


@pytest.mark.parametrize('seconds, times, following, delta', [
    (1.0, [2, 4, 6], 7, -7),
    (0.5, [2, 3, 4], 5, -9),
    (0.995, [2, 3, 5], 6, -8),
    (1.3, [2, 4, 7], 8, -6),
])
def test_video(encoding, seconds, times, following, delta):
    """a VS, a video of 3 frame groups of 2 x 2 cells, VE b."""
    ids = encoding.ids([TextSpan(2), VisionSpan((3, 2, 2), seconds), TextSpan(2)])
    assert ids[0, 2:14].tolist() == [time for time in times for _ in range(4)]
    assert ids[1, 2:14].tolist() == [2, 2, 3, 3] * 3
    assert ids[2, 2:14].tolist() == [2, 3, 2, 3] * 3
    assert ids[:, :2].tolist() == [[0, 1]] * 3
    assert ids[:, 14:].tolist() == [[following, following + 1]] * 3
    assert int(ids.max()) + 1 - ids.shape[1] == delta


def test_text_after_a_wide_video_follows_its_widest_axis(encoding):
    """2 frame groups half a second apart reach time 1; 3 x 5 cells reach column 4."""
    ids = encoding.ids([VisionSpan((2, 3, 5), 0.5), TextSpan(1)])
    assert ids[:, -1].tolist() == [5, 5, 5]


def test_every_sample_starts_at_zero_and_text_has_equal_axes(encoding):
    assert encoding.ids([TextSpan(4)]).tolist() == [[0, 1, 2, 3]] * 3
    assert encoding.ids([VisionSpan((1, 1, 1)), TextSpan(1)]).tolist() == [[0, 1]] * 3


def test_the_frequencies_are_dealt_to_the_axes_in_sections():
    """Sections 16, 24, 24 of 64: time turns the fastest, width the slowest; theta 1e6."""
    cos, sin = AbsoluteTimeMRoPE(128).rotary(torch.tensor([[3], [5], [7]]))
    angles = torch.tensor([(3 if i < 16 else 5 if i < 40 else 7) * 1e6 ** (-2 * i / 128) for i in range(64)],
                          dtype=torch.float64)
    torch.testing.assert_close(cos[0].double(), angles.cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0].double(), angles.sin(), atol=1e-6, rtol=0)
