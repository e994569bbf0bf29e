"""Attention pooling: softmax within a picture for each head, against torch's own attention."""
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from qvlkit.models.poolings.attention import AttentionPooling


def test_it_is_attention_of_one_query_over_each_picture():
    torch.manual_seed(0)
    pooling = AttentionPooling(8, 5, num_heads=2).double()
    features, index = torch.randn(7, 8, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 1, 0])
    pooled = pooling(features, index, torch.tensor([3, 4]))
    for picture in (0, 1):
        own = pooling.norm(features[index == picture])
        k, v = (project(own).unflatten(-1, (2, 4)).transpose(0, 1) for project in (pooling.k_proj, pooling.v_proj))
        expected = pooling.proj(F.scaled_dot_product_attention(pooling.query.weight.view(2, 1, 4), k, v).flatten())
        torch.testing.assert_close(pooled[picture], expected, rtol=0, atol=1e-12)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match=r'towers.pooling.num_heads: 3 .* 8 of model.vision_encoder.width'):
        AttentionPooling(8, 5, num_heads=3)


def test_flops():
    pooling = AttentionPooling(8, 5, num_heads=2)
    with FlopCounterMode(display=False) as counter:
        pooling(torch.randn(12, 8), torch.zeros(12, dtype=torch.int64), torch.tensor([12]))
    assert counter.get_total_flops() == pooling.flops((1, 4, 3))
