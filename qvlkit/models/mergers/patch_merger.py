"""Patch merger: each block of s x s patches becomes one language token, by concatenation and a two-layer MLP.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1; RMSNorm as in Qwen2.5-VL, arXiv 2502.13923.
Shapes: N patches, D vision width, M = N / s^2 visual tokens, E language width.
"""
import torch
from torch import nn

from qvlkit.models.layers.cells import CellMerger
from qvlkit.models.layers.norms import RMSNorm
from qvlkit.registry import MERGERS
from qvlkit.structures import Grid, VisionPlan


@MERGERS.register_module()
class PatchMerger(CellMerger):
    """Norm each patch, join the patches of a block, project.

    Args:
        vision_dim: D; injected from the vision encoder.
        language_dim: E; injected from the language model.
        merge_size: s, the side of a block in patches.
    """

    def __init__(self, vision_dim: int, language_dim: int, *, merge_size: int = 2, norm_eps: float = 1e-6):
        super().__init__(merge_size)
        self.block_dim = vision_dim * merge_size**2
        self.ln_q = RMSNorm(vision_dim, norm_eps)
        self.mlp = nn.Sequential(nn.Linear(self.block_dim, self.block_dim), nn.GELU(),
                                 nn.Linear(self.block_dim, language_dim))

    def forward(self, features: torch.Tensor, plan: VisionPlan | None = None) -> torch.Tensor:
        """(N, D) -> (M, E)."""
        return self.mlp(self.ln_q(features).view(-1, self.block_dim))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return 2 * self.num_tokens(grid) * sum(layer.weight.numel() for layer in (self.mlp[0], self.mlp[2]))
