"""The vision transformer of Qwen2.5-VL: attention in windows, and over the whole picture in a few blocks.

Source: Qwen2.5-VL Technical Report, arXiv 2502.13923, section 2.1.1.
Shapes: N patches, D width, C*F*P*P values of a patch.
"""
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from qvlkit.models.layers.feed_forward import SwiGLU
from qvlkit.models.layers.norms import RMSNorm
from qvlkit.models.layers.vision import (
    PatchEmbed,
    VisionAttention,
    block_positions,
    check_patch,
    frame_lengths,
    vision_flops,
    vision_rotary,
)
from qvlkit.registry import VISION_ENCODERS
from qvlkit.structures import AttentionPlan, Grid, VisionPlan


@functools.lru_cache(maxsize=4096)
def window_order(rows: int, columns: int, window: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Cells of one frame group, window by window, and how many cells each window holds.

    Windows have `window` x `window` cells; those at the right and bottom edge stay smaller. For 2 x 5 cells and
    windows of 4 the order is 0 1 2 3 5 6 7 8 4 9 and the lengths are 8 and 2.
    """
    across, down = -(-columns // window), -(-rows // window)
    small = np.uint16 if across * down < 2**16 else np.int64  # numpy sorts 16 bits by counting
    flat = np.add.outer((np.arange(rows) // window * across).astype(small),
                        (np.arange(columns) // window).astype(small)).ravel()
    return flat.argsort(kind='stable'), tuple(np.bincount(flat).tolist())


@functools.lru_cache(maxsize=4096)
def _frame_plan(rows: int, columns: int, merge_size: int,
                window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Of one frame group: patch order, cell order, positions in that order, patches of each window."""
    cells, lengths = window_order(rows // merge_size, columns // merge_size, window)
    block = merge_size**2
    patches = np.add.outer(cells * block, np.arange(block)).ravel()
    positions = block_positions(rows, columns, merge_size).reshape(-1, block * 2).take(cells, axis=0)
    return patches, cells, positions.reshape(-1, 2), tuple([length * block for length in lengths])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, feed_forward_width: int, norm_eps: float, attention: str):
        super().__init__()
        self.norm1 = RMSNorm(width, norm_eps)
        self.attn = VisionAttention(width, num_heads, attention)
        self.norm2 = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, feed_forward_width, bias=True)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotary, plan)
        return x + self.mlp(self.norm2(x))


@VISION_ENCODERS.register_module()
class Qwen25ViT(nn.Module):
    """Window-attention ViT.

    Args:
        width: D.
        depth: Number of blocks.
        num_heads: Attention heads; D / num_heads must be divisible by 4 (two axes, sine and cosine halves).
        feed_forward_width: Hidden width of the SwiGLU feed-forward network.
        patch_size, temporal_patch_size: P in pixels, F in frames.
        window_size: Side of an attention window in pixels; a multiple of the merge cell's side.
        full_attention_blocks: Blocks (from 0) that attend over the whole frame group.
        merge_size: Side of a merge cell in patches; injected from the merger.
        attention: Name of the attention backend; injected.
    """

    def __init__(self, width: int = 1280, depth: int = 32, *, num_heads: int = 16, feed_forward_width: int = 3420,
                 patch_size: int = 14, temporal_patch_size: int = 2, window_size: int = 112,
                 full_attention_blocks: Sequence[int] = (7, 15, 23, 31), merge_size: int = 2, in_channels: int = 3,
                 norm_eps: float = 1e-6, attention: str = 'sdpa'):
        super().__init__()
        check_patch(patch_size=patch_size, temporal_patch_size=temporal_patch_size)
        if width % (4 * num_heads):
            raise ValueError(f'model.vision_encoder: width {width} / num_heads {num_heads} must be a multiple of 4')
        if any(not 0 <= block < depth for block in full_attention_blocks):
            raise ValueError(f'model.vision_encoder.full_attention_blocks: {list(full_attention_blocks)} has a block '
                             f'outside 0 ... {depth - 1} (depth {depth})')
        cell = patch_size * merge_size
        if window_size < cell or window_size % cell:
            raise ValueError(f'model.vision_encoder.window_size: {window_size} pixels is not a multiple of the merge '
                             f'cell of {cell} (patch_size {patch_size} x model.merger.merge_size {merge_size})')
        self.width, self.depth, self.num_heads, self.feed_forward_width = width, depth, num_heads, feed_forward_width
        self.patch_size, self.temporal_patch_size, self.in_channels = patch_size, temporal_patch_size, in_channels
        self.merge_size, self.window_size = merge_size, window_size
        self.full_attention_blocks = frozenset(full_attention_blocks)
        self.patch_embed = PatchEmbed(in_channels * temporal_patch_size * patch_size**2, width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, feed_forward_width, norm_eps, attention) for _ in range(depth))

    @property
    def window_cells(self) -> int:
        """Side of a window in merge cells."""
        return self.window_size // (self.patch_size * self.merge_size)

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """Window order, its cumulative lengths and 2-D positions: on the CPU, from the grids alone."""
        frames = frame_lengths(grids)
        order = np.empty(sum(frames), dtype=np.int64)
        token_order = np.empty(len(order) // self.merge_size**2, dtype=np.int64)
        positions = np.empty((len(order), 2), dtype=np.int64)
        windows, patch, cell = [], 0, 0
        for t, rows, columns in grids:
            patches, cells, place, lengths = _frame_plan(rows, columns, self.merge_size, self.window_cells)
            for _ in range(t):
                next_patch, next_cell = patch + len(patches), cell + len(cells)
                np.add(patches, patch, out=order[patch:next_patch])
                np.add(cells, cell, out=token_order[cell:next_cell])
                positions[patch:next_patch] = place
                windows.extend(lengths)
                patch, cell = next_patch, next_cell
        return VisionPlan(
            order=torch.from_numpy(order), token_order=torch.from_numpy(token_order),
            positions=torch.from_numpy(positions),
            attention=dict(window=AttentionPlan.from_lengths(windows, causal=False),
                           full=AttentionPlan.from_lengths(frames, causal=False)),
            grids=tuple(grids))

    def forward(self, patches: torch.Tensor, plan: VisionPlan) -> torch.Tensor:
        """(N, C*F*P*P) normalised patches in plan order -> (N, D)."""
        x = self.patch_embed(patches)
        rotary = vision_rotary(plan.positions, self.width // self.num_heads, theta=10000.0)
        for index, block in enumerate(self.blocks):
            x = block(x, rotary, plan.attention['full' if index in self.full_attention_blocks else 'window'])
        return x

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture: matrix products, and attention within windows or frame groups."""
        t, rows, columns = grid
        *_, windows = _frame_plan(rows, columns, self.merge_size, self.window_cells)
        attended = [frame_lengths([grid]) if index in self.full_attention_blocks else windows * t
                    for index in range(self.depth)]
        return vision_flops(grid, width=self.width, depth=self.depth, feed_forward_matrices=3,
                            feed_forward_width=self.feed_forward_width,
                            patch_values=self.patch_embed.proj.in_features, attended=attended)
