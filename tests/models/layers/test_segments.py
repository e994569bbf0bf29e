"""Reductions over segments in any order of rows: equal to a loop over segments."""
import torch

from qvlkit.models.layers.segments import segment_mean, segment_softmax, segment_sum

INDEX = torch.tensor([2, 0, 2, 1, 0, 2, 2])
LENGTHS = torch.tensor([2, 1, 4])


def test_sum_and_mean_and_softmax_are_those_of_each_segment():
    rows = torch.randn(7, 3, dtype=torch.float64)
    sums, means, weights = segment_sum(rows, INDEX, 3), segment_mean(rows, INDEX, LENGTHS), segment_softmax(
        rows, INDEX, 3)
    for segment in range(3):
        own = INDEX == segment
        torch.testing.assert_close(sums[segment], rows[own].sum(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(means[segment], rows[own].mean(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(weights[own], rows[own].softmax(0), rtol=0, atol=1e-12)


def test_large_scores_do_not_overflow_and_gradients_are_right():
    scores = 1e4 * torch.randn(7, 2, dtype=torch.float64)
    assert torch.isfinite(segment_softmax(scores, INDEX, 3)).all()
    small = torch.randn(7, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: segment_softmax(x, INDEX, 3), small)


def test_sums_of_bfloat16_are_made_in_float32():
    rows = torch.full((1001, 1), 1.0, dtype=torch.bfloat16)
    index = torch.zeros(1001, dtype=torch.int64)
    assert segment_sum(rows, index, 1).dtype == torch.float32 and segment_sum(rows, index, 1).item() == 1001
    assert segment_mean(rows, index, torch.tensor([1001])).dtype == torch.bfloat16
