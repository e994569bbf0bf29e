"""Root mean square norm. Source: arXiv 1910.07467."""
import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """Scale each row to unit root mean square, in float32, then by a learnt weight: (..., D) -> (..., D)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype)
