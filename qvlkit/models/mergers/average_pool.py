"""Average-pool merger: each block of s x s patches becomes one language token, by its mean and a two-layer MLP.

Source: the pooling projector of DeCo, arXiv 2405.20985.
Shapes: N patches, D vision width, M = N / s^2 visual tokens, E language width.
"""
import torch
from torch import nn

from qvlkit.models.layers.cells import CellMerger
from qvlkit.models.layers.norms import RMSNorm
from qvlkit.registry import MERGERS
from qvlkit.structures import Grid, VisionPlan


@MERGERS.register_module()
class AveragePoolMerger(CellMerger):
    """Norm each patch, average the patches of a block, project.

    Args:
        vision_dim: D; injected from the vision encoder.
        language_dim: E; injected from the language model.
        merge_size: s, the side of a block in patches.
    """

    def __init__(self, vision_dim: int, language_dim: int, *, merge_size: int = 2, norm_eps: float = 1e-6):
        super().__init__(merge_size)
        self.norm = RMSNorm(vision_dim, norm_eps)
        self.mlp = nn.Sequential(nn.Linear(vision_dim, language_dim), nn.GELU(), nn.Linear(language_dim, language_dim))

    def forward(self, features: torch.Tensor, plan: VisionPlan | None = None) -> torch.Tensor:
        """(N, D) -> (M, E)."""
        return self.mlp(self.norm(features).unflatten(0, (-1, self.merge_size**2)).mean(1))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return 2 * self.num_tokens(grid) * sum(layer.weight.numel() for layer in (self.mlp[0], self.mlp[2]))
