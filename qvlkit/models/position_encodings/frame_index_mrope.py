"""M-RoPE whose temporal ids count frame groups, whatever time lies between them.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1.
Shapes: A = 3 axes (time, height, width), T tokens, d head width.
"""
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from qvlkit.models.layers.positions import check_sections, mrope_ids, sectioned_rotary
from qvlkit.registry import POSITION_ENCODINGS
from qvlkit.structures import Layout


@POSITION_ENCODINGS.register_module()
class FrameIndexMRoPE(nn.Module):
    """Frame group k gets temporal id k.

    Args:
        head_dim: d; injected from the language model.
        sections: Frequencies for time, height and width; they sum to d / 2.
        theta: Base of the frequencies.
    """
    num_axes = 3

    def __init__(self, head_dim: int, *, sections: Sequence[int] = (16, 24, 24), theta: float = 1e6):
        super().__init__()
        self.sections = check_sections(sections, head_dim)
        self.theta = theta

    def ids(self, layout: Layout) -> torch.Tensor:
        """Layout of one sample -> (3, T) int64."""
        return mrope_ids(layout, lambda span: np.arange(span.grid[0]))

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, T) -> cos, sin (T, d/2) float32."""
        return sectioned_rotary(position_ids, self.sections, self.theta)
