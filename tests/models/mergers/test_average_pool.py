"""The average-pool merger against a loop over blocks."""
import torch
from torch.nn import functional as F

from qvlkit.models.mergers.average_pool import AveragePoolMerger


def test_it_equals_a_loop_over_blocks():
    torch.manual_seed(0)
    merger = AveragePoolMerger(3, 5, merge_size=2).double()
    torch.nn.init.normal_(merger.norm.weight)
    features = torch.randn(12, 3, dtype=torch.float64)
    first, last = merger.mlp[0], merger.mlp[2]
    rows = []
    for start in range(0, 12, 4):
        mean = sum(x / (x.square().mean() + 1e-6).sqrt() * merger.norm.weight for x in features[start:start + 4]) / 4
        rows.append(last.weight @ F.gelu(first.weight @ mean + first.bias) + last.bias)
    torch.testing.assert_close(merger(features), torch.stack(rows))


def test_tokens_and_operations():
    merger = AveragePoolMerger(3, 5, merge_size=4)
    assert merger.num_tokens((3, 4, 8)) == 6
    assert merger.flops((3, 4, 8)) == 6 * 2 * (3 * 5 + 5 * 5)
