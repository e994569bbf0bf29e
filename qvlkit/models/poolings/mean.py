"""Mean pooling: a picture is the average of its patches.

Shapes: N patches, D vision width, B pictures, W common width of the two towers.
"""
import torch
from torch import nn

from qvlkit.models.layers.norms import RMSNorm
from qvlkit.models.layers.segments import segment_mean
from qvlkit.registry import POOLINGS
from qvlkit.structures import Grid


@POOLINGS.register_module()
class MeanPooling(nn.Module):
    """Norm each patch, average over each picture, project.

    Args:
        vision_dim: D; injected from the vision encoder.
        embed_dim: W; injected from the towers' width.
    """

    def __init__(self, vision_dim: int, embed_dim: int, *, norm_eps: float = 1e-6):
        super().__init__()
        self.vision_dim, self.embed_dim = vision_dim, embed_dim
        self.norm = RMSNorm(vision_dim, norm_eps)
        self.proj = nn.Linear(vision_dim, embed_dim, bias=False)

    def forward(self, features: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features (N, D) in the plan's order, the picture (N,) of each, features (B,) of each picture -> (B, W)."""
        return self.proj(segment_mean(self.norm(features), index, lengths))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return 2 * self.vision_dim * self.embed_dim
