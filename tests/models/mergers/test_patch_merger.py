"""The patch merger against a loop over blocks."""
import torch
from torch.nn import functional as F

from qvlkit.models.mergers.patch_merger import PatchMerger


def test_it_equals_a_loop_over_blocks():
    torch.manual_seed(0)
    merger = PatchMerger(3, 5, merge_size=2).double()
    torch.nn.init.normal_(merger.ln_q.weight)
    features = torch.randn(12, 3, dtype=torch.float64)
    first, last = merger.mlp[0], merger.mlp[2]
    rows = []
    for start in range(0, 12, 4):
        joined = torch.cat([x / (x.square().mean() + 1e-6).sqrt() * merger.ln_q.weight
                            for x in features[start:start + 4]])
        rows.append(last.weight @ F.gelu(first.weight @ joined + first.bias) + last.bias)
    torch.testing.assert_close(merger(features), torch.stack(rows))


def test_tokens_and_operations():
    merger = PatchMerger(3, 5, merge_size=2)
    assert merger.num_tokens((3, 4, 6)) == 18
    assert merger.flops((3, 4, 6)) == 18 * 2 * (12 * 12 + 12 * 5)
