"""M-RoPE whose temporal ids follow real time.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.1.2.
Shapes: A = 3 axes (time, height, width), T tokens, d head width.
"""
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from qvlkit.models.layers.positions import check_sections, mrope_ids, sectioned_rotary
from qvlkit.registry import POSITION_ENCODINGS
from qvlkit.structures import Layout, VisionSpan


@POSITION_ENCODINGS.register_module()
class AbsoluteTimeMRoPE(nn.Module):
    """A frame group at k * seconds_per_grid seconds gets temporal id trunc(k * seconds_per_grid * tokens_per_second).

    The product is taken in floating point and truncated last, so that sampling above tokens_per_second / F frames a
    second keeps its order.

    Args:
        head_dim: d; injected from the language model.
        sections: Frequencies for time, height and width; they sum to d / 2.
        tokens_per_second: Temporal ids per second.
        theta: Base of the frequencies.
    """
    num_axes = 3

    def __init__(self, head_dim: int, *, sections: Sequence[int] = (16, 24, 24), tokens_per_second: float = 2,
                 theta: float = 1e6):
        super().__init__()
        self.sections = check_sections(sections, head_dim)
        self.tokens_per_second, self.theta = tokens_per_second, theta

    def frame_ids(self, span: VisionSpan) -> np.ndarray:
        """(t,) int64: temporal id of each frame group, from 0."""
        groups = np.arange(span.grid[0], dtype=np.float64)
        return np.trunc(groups * span.seconds_per_grid * self.tokens_per_second).astype(np.int64)

    def ids(self, layout: Layout) -> torch.Tensor:
        """Layout of one sample -> (3, T) int64."""
        return mrope_ids(layout, self.frame_ids)

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, T) -> cos, sin (T, d/2) float32."""
        return sectioned_rotary(position_ids, self.sections, self.theta)
