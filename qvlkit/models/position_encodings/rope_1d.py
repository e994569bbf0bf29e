"""Plain rotary positions: every token counts one on, text and picture alike.

Source: RoFormer, arXiv 2104.09864. Shapes: A = 1 axis, T tokens, d head width.
"""
import torch
from torch import nn

from qvlkit.models.layers.rotary import inverse_frequencies
from qvlkit.registry import POSITION_ENCODINGS
from qvlkit.structures import Layout


@POSITION_ENCODINGS.register_module()
class RoPE1D(nn.Module):
    """One axis for all tokens.

    Args:
        head_dim: d; injected from the language model.
        theta: Base of the frequencies.
    """
    num_axes = 1

    def __init__(self, head_dim: int, *, theta: float = 1e6):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta

    def ids(self, layout: Layout) -> torch.Tensor:
        """Layout of one sample -> (1, T) int64: 0, 1, 2, ..."""
        return torch.arange(sum(span.length for span in layout)).unsqueeze(0)

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(1, T) -> cos, sin (T, d/2) float32."""
        angles = position_ids[0, :, None].float() * inverse_frequencies(self.head_dim, self.theta, position_ids.device)
        return angles.cos(), angles.sin()
