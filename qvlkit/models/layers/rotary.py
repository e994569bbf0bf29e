"""Rotary position embedding in the rotate-half convention. Source: RoFormer, arXiv 2104.09864.

Shapes: T rows, H heads, d head width. Angles are kept for one half of the head; both halves use the same.
"""
import torch


def inverse_frequencies(dim: int, theta: float, device: torch.device | str | None = None) -> torch.Tensor:
    """theta ** (-2i / dim) for i = 0 ... dim/2 - 1, float32.

    Computed anew wherever it is used: a buffer would be rounded by `model.to(torch.bfloat16)`, and positions with it.
    """
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate x (T, H, d) by cos and sin (T, d/2), in the wider of the two dtypes; the result has x's dtype."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
