"""Attention pooling: one learnt query for each head looks over the patches of a picture.

Source: Set Transformer, arXiv 1810.00825, section 3.2 (pooling by attention), as in Sigmoid Loss for Language Image
Pre-Training, arXiv 2303.15343.
Shapes: N patches, D vision width, H heads, d = D / H, B pictures, W common width of the two towers.
"""
import math

import torch
from torch import nn

from qvlkit.models.layers.norms import RMSNorm
from qvlkit.models.layers.segments import segment_softmax, segment_sum
from qvlkit.registry import POOLINGS
from qvlkit.structures import Grid


@POOLINGS.register_module()
class AttentionPooling(nn.Module):
    """Norm each patch, weigh a picture's patches by a softmax over them for each head, add up, project.

    Args:
        vision_dim: D; injected from the vision encoder.
        embed_dim: W; injected from the towers' width.
        num_heads: H, a divisor of D.

    Raises:
        ValueError: The heads do not divide the width.
    """

    def __init__(self, vision_dim: int, embed_dim: int, *, num_heads: int = 8, norm_eps: float = 1e-6):
        super().__init__()
        if num_heads < 1 or vision_dim % num_heads:
            raise ValueError(f'towers.pooling.num_heads: {num_heads} does not divide the {vision_dim} of '
                             'model.vision_encoder.width')
        self.num_heads, self.vision_dim, self.embed_dim = num_heads, vision_dim, embed_dim
        self.norm = RMSNorm(vision_dim, norm_eps)
        self.query = nn.Embedding(1, vision_dim)  # (H, d) laid flat: near 0 at first, which is close to the mean
        self.k_proj = nn.Linear(vision_dim, vision_dim, bias=False)  # a softmax sees no bias
        self.v_proj = nn.Linear(vision_dim, vision_dim)
        self.proj = nn.Linear(vision_dim, embed_dim, bias=False)

    def forward(self, features: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features (N, D) in the plan's order, the picture (N,) of each, features (B,) of each picture -> (B, W)."""
        features = self.norm(features)
        k, v = (project(features).unflatten(-1, (self.num_heads, -1)) for project in (self.k_proj, self.v_proj))
        query = self.query.weight.view(self.num_heads, -1)
        scores = (k * query).sum(-1) * query.shape[-1] ** -0.5  # (N, H)
        weights = segment_softmax(scores, index, lengths.shape[0])
        pooled = segment_sum(weights[:, :, None] * v, index, lengths.shape[0]).flatten(1)
        return self.proj(pooled.to(v.dtype))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return 2 * (2 * math.prod(grid) * self.vision_dim**2 + self.vision_dim * self.embed_dim)
