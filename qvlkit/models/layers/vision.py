"""What the vision transformers share: patch embedding, 2-D rotary attention, and the order of patches.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1; Qwen2.5-VL, arXiv 2502.13923, section 2.1.1.
Shapes: N patches, D width, H heads, d = D / H. Patches come in block order: the patches of a merge cell are
neighbours, cells run row by row, frame group after frame group. For merge size 2 and a 4 x 4 grid the rows of the
sixteen patches are 0 0 1 1 0 0 1 1 2 2 3 3 2 2 3 3 and the columns 0 1 0 1 2 3 2 3 0 1 0 1 2 3 2 3.
"""
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from qvlkit.models.layers.attention import attention_backend
from qvlkit.models.layers.rotary import apply_rotary, inverse_frequencies
from qvlkit.structures import AttentionPlan, Grid


@functools.lru_cache(maxsize=4096)
def block_positions(rows: int, columns: int, merge_size: int) -> np.ndarray:
    """(rows * columns, 2) int64: row and column of each patch of one frame group, in block order."""
    if rows % merge_size or columns % merge_size:
        raise ValueError(f'a grid of {rows} x {columns} patches does not divide into blocks of {merge_size} x '
                         f'{merge_size} (model.merger.merge_size)')
    positions = np.empty((rows // merge_size, columns // merge_size, merge_size, merge_size, 2), dtype=np.int64)
    positions[..., 0] = np.arange(rows).reshape(-1, 1, merge_size, 1)
    positions[..., 1] = np.arange(columns).reshape(1, -1, 1, merge_size)
    return positions.reshape(-1, 2)


def grid_positions(grids: Sequence[Grid], merge_size: int) -> np.ndarray:
    """(N, 2): block_positions of every frame group of every picture, one after the other."""
    return np.concatenate([np.tile(block_positions(rows, columns, merge_size), (t, 1)) for t, rows, columns in grids])


def frame_lengths(grids: Sequence[Grid]) -> list[int]:
    """Patches of every frame group: attention in the encoder never crosses time."""
    return [rows * columns for t, rows, columns in grids for _ in range(t)]


def vision_rotary(positions: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 2) rows and columns -> cos, sin (N, d/2) float32: the first d/4 angles turn with the row, the rest with
    the column."""
    frequencies = inverse_frequencies(head_dim // 2, theta, positions.device)
    angles = (positions[:, :, None].float() * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def check_patch(**sides: int) -> None:
    """ValueError unless patch_size and temporal_patch_size are whole numbers of at least 1."""
    for key, side in sides.items():
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise ValueError(f'model.vision_encoder.{key}: expected a whole number of at least 1, got {side!r}')


class PatchEmbed(nn.Module):
    """A linear map of flattened patches: (N, C*F*P*P) -> (N, D). Equal to a convolution whose stride is its kernel."""

    def __init__(self, patch_values: int, width: int):
        super().__init__()
        self.proj = nn.Linear(patch_values, width, bias=False)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return self.proj(patches.to(self.proj.weight.dtype))


class VisionAttention(nn.Module):
    """Multi-head attention within the plan's segments, with 2-D rotary positions applied in float32."""

    def __init__(self, width: int, num_heads: int, attention: str):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attend = attention_backend(attention)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan) -> torch.Tensor:
        """(N, D) -> (N, D)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(1)
        return self.proj(self.attend(apply_rotary(q, *rotary), apply_rotary(k, *rotary), v, plan).flatten(1))


def vision_flops(grid: Grid, *, width: int, depth: int, feed_forward_matrices: int, feed_forward_width: int,
                 patch_values: int, attended: Sequence[Sequence[int]]) -> int:
    """Forward FLOPs of an encoder over one picture. `attended`: for each block, the lengths of its segments."""
    patches = grid[0] * grid[1] * grid[2]
    linear = 4 * width**2 + feed_forward_matrices * width * feed_forward_width
    attention = sum(4 * width * sum(length**2 for length in lengths) for lengths in attended)
    return 2 * patches * (depth * linear + patch_values * width) + attention
