"""Pixel-shuffle merger: each block of s x s patches becomes one language token, norm after joining.

Source: InternVL 1.5, arXiv 2404.16821, section 3.1.
Shapes: N patches, D vision width, M = N / s^2 visual tokens, E language width.
"""
import torch
from torch import nn

from qvlkit.models.layers.cells import CellMerger
from qvlkit.registry import MERGERS
from qvlkit.structures import Grid, VisionPlan


@MERGERS.register_module()
class PixelShuffleMerger(CellMerger):
    """Move space into channels, LayerNorm the joined block, project with an MLP of the language model's width.

    Args:
        vision_dim: D; injected from the vision encoder.
        language_dim: E; injected from the language model.
        merge_size: s, the side of a block in patches.
    """

    def __init__(self, vision_dim: int, language_dim: int, *, merge_size: int = 2, norm_eps: float = 1e-5):
        super().__init__(merge_size)
        block_dim = vision_dim * merge_size**2
        self.mlp = nn.Sequential(nn.LayerNorm(block_dim, norm_eps), nn.Linear(block_dim, language_dim), nn.GELU(),
                                 nn.Linear(language_dim, language_dim))

    def forward(self, features: torch.Tensor, plan: VisionPlan | None = None) -> torch.Tensor:
        """(N, D) -> (M, E). Patches come in block order, so the shuffle is a reshape."""
        return self.mlp(features.unflatten(0, (-1, self.merge_size**2)).flatten(1))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return 2 * self.num_tokens(grid) * sum(layer.weight.numel() for layer in (self.mlp[1], self.mlp[3]))
