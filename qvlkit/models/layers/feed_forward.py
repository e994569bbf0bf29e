"""Gated feed-forward network. Source: GLU Variants Improve Transformer, arXiv 2002.05202."""
import torch
from torch import nn
from torch.nn import functional as F


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): (..., D) -> (..., D)."""

    def __init__(self, width: int, hidden_width: int, *, bias: bool):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_width, bias=bias)
        self.up_proj = nn.Linear(width, hidden_width, bias=bias)
        self.down_proj = nn.Linear(hidden_width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
