"""The pixel-shuffle merger against a loop over blocks."""
import torch
from torch.nn import functional as F

from qvlkit.models.mergers.pixel_shuffle import PixelShuffleMerger


def test_it_equals_a_loop_over_blocks():
    torch.manual_seed(0)
    merger = PixelShuffleMerger(3, 5, merge_size=2).double()
    norm, first, last = merger.mlp[0], merger.mlp[1], merger.mlp[3]
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    features = torch.randn(12, 3, dtype=torch.float64)
    rows = []
    for start in range(0, 12, 4):
        joined = torch.cat(list(features[start:start + 4]))
        joined = (joined - joined.mean()) / (joined.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
        rows.append(last.weight @ F.gelu(first.weight @ joined + first.bias) + last.bias)
    torch.testing.assert_close(merger(features), torch.stack(rows))


def test_tokens_and_operations():
    merger = PixelShuffleMerger(3, 5, merge_size=2)
    assert merger.num_tokens((1, 4, 6)) == 6
    assert merger.flops((1, 4, 6)) == 6 * 2 * (12 * 5 + 5 * 5)
