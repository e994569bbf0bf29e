"""The kinds of position encoding: what their ids count, and what their rotations keep."""
import pytest
import torch

from qvlkit.models.layers.rotary import apply_rotary, inverse_frequencies
from qvlkit.models.position_encodings.absolute_time_mrope import AbsoluteTimeMRoPE
from qvlkit.models.position_encodings.frame_index_mrope import FrameIndexMRoPE
from qvlkit.models.position_encodings.rope_1d import RoPE1D
from qvlkit.structures import TextSpan, VisionSpan

LAYOUT = [TextSpan(2), VisionSpan((3, 2, 2), 1.3), TextSpan(1), VisionSpan((1, 1, 3)), TextSpan(1)]


def test_frame_index_counts_frame_groups_whatever_the_time():
    ids = FrameIndexMRoPE(128).ids(LAYOUT)
    assert ids[0].tolist() == [0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 6, 6, 6, 9]
    assert ids[1].tolist() == [0, 1, *[2, 2, 3, 3] * 3, 5, 6, 6, 6, 9]
    assert ids[2].tolist() == [0, 1, *[2, 3, 2, 3] * 3, 5, 6, 7, 8, 9]


def test_absolute_time_with_the_same_layout():
    ids = AbsoluteTimeMRoPE(128).ids(LAYOUT)
    assert ids[0].tolist() == [0, 1, 2, 2, 2, 2, 4, 4, 4, 4, 7, 7, 7, 7, 8, 9, 9, 9, 12]


def test_tokens_per_second_scales_time_before_truncation():
    times = [AbsoluteTimeMRoPE(128, tokens_per_second=rate).frame_ids(VisionSpan((4, 1, 1), 0.7)).tolist()
             for rate in (1, 2, 2.5)]
    assert times == [[0, 0, 1, 2], [0, 1, 2, 4], [0, 1, 3, 5]]


def test_one_axis_counts_every_token():
    assert RoPE1D(128).ids(LAYOUT).tolist() == [list(range(19))]


@pytest.mark.parametrize('kind', [AbsoluteTimeMRoPE, FrameIndexMRoPE])
def test_equal_ids_on_all_axes_reduce_to_one_axis(kind):
    ids = torch.tensor([[0, 1, 17, 4000]])
    for value, expected in zip(kind(128).rotary(ids.expand(3, -1)), RoPE1D(128).rotary(ids)):
        assert torch.equal(value, expected)


@pytest.mark.parametrize('kind', [AbsoluteTimeMRoPE, FrameIndexMRoPE])
def test_sections_must_fill_half_a_head(kind):
    with pytest.raises(ValueError, match=r'\[2, 3, 4\] sums to 9, .*model\.language_model is 8'):
        kind(16, sections=[2, 3, 4])


def test_scores_depend_on_distance_alone_and_norms_are_kept():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 3, 16, dtype=torch.float64, generator=generator)
    encoding = RoPE1D(16)

    def score(query_place, key_place):
        rotated = [apply_rotary(x, *encoding.rotary(torch.tensor([[place]]))) for x, place in
                   ((q, query_place), (k, key_place))]
        return (rotated[0] * rotated[1]).sum(-1)

    torch.testing.assert_close(score(9, 4), score(25, 20), atol=1e-5, rtol=0)
    assert float((score(9, 4) - score(9, 5)).abs().min()) > 1e-3
    rotated = apply_rotary(q, *encoding.rotary(torch.tensor([[123]])))
    torch.testing.assert_close(rotated.norm(dim=-1), q.norm(dim=-1), atol=1e-6, rtol=0)


def test_rotation_pairs_the_halves():
    """Rotate-half: value i turns with value i + d/2. A quarter turn sends (a, b) to (-b, a)."""
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert apply_rotary(x, torch.zeros(1, 2), torch.ones(1, 2)).tolist() == [[[-3.0, -4.0, 1.0, 2.0]]]


def test_frequencies_survive_a_cast_of_the_model():
    """No buffer holds them, so positions stay exact in a bfloat16 model."""
    encoding = AbsoluteTimeMRoPE(128)
    ids = torch.tensor([[31], [500], [77]])
    before = encoding.rotary(ids)
    after = encoding.to(torch.bfloat16).rotary(ids)
    assert all(torch.equal(value, other) for value, other in zip(before, after))
    assert inverse_frequencies(128, 1e6)[[0, 63]].tolist() == pytest.approx([1.0, 1e6 ** (-126 / 128)], rel=1e-6)
