"""Mean pooling: the average of a picture's patches, projected."""
import torch
from torch.utils.flop_counter import FlopCounterMode

from qvlkit.models.poolings.mean import MeanPooling


def test_it_is_the_projected_mean_of_the_normed_patches():
    pooling = MeanPooling(8, 5).double()
    features, index = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 1])
    pooled = pooling(features, index, torch.tensor([2, 4]))
    expected = torch.stack([pooling.proj(pooling.norm(features[index == picture]).mean(0)) for picture in (0, 1)])
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-12)


def test_flops():
    pooling = MeanPooling(8, 5)
    with FlopCounterMode(display=False) as counter:
        pooling(torch.randn(12, 8), torch.zeros(12, dtype=torch.int64), torch.tensor([12]))
    assert counter.get_total_flops() == pooling.flops((1, 4, 3))
