"""The vision transformer of Qwen2-VL: full attention over each frame group, LayerNorm, QuickGELU.

Source: Qwen2-VL, arXiv 2409.12191, section 2.1.
Shapes: N patches, D width, C*F*P*P values of a patch.
"""
from collections.abc import Sequence

import torch
from torch import nn

from qvlkit.models.layers.vision import (
    PatchEmbed,
    VisionAttention,
    check_patch,
    frame_lengths,
    grid_positions,
    vision_flops,
    vision_rotary,
)
from qvlkit.registry import VISION_ENCODERS
from qvlkit.structures import AttentionPlan, Grid, VisionPlan


class QuickGELUFeedForward(nn.Module):
    """fc2(h * sigmoid(1.702 h)) with h = fc1(x)."""

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.fc1(x)
        return self.fc2(hidden * torch.sigmoid(1.702 * hidden))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, feed_forward_width: int, norm_eps: float, attention: str):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, norm_eps)
        self.attn = VisionAttention(width, num_heads, attention)
        self.norm2 = nn.LayerNorm(width, norm_eps)
        self.mlp = QuickGELUFeedForward(width, feed_forward_width)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan) -> torch.Tensor:
        x = x + self.attn(self.norm1(x), rotary, plan)
        return x + self.mlp(self.norm2(x))


@VISION_ENCODERS.register_module()
class Qwen2ViT(nn.Module):
    """Full-attention ViT.

    Args:
        width: D.
        depth: Number of blocks.
        num_heads: Attention heads; D / num_heads must be divisible by 4.
        feed_forward_width: Hidden width of the feed-forward network; 4 D if absent.
        patch_size, temporal_patch_size: P in pixels, F in frames.
        merge_size: Side of a merge cell in patches; injected from the merger.
        attention: Name of the attention backend; injected.
    """

    def __init__(self, width: int = 1280, depth: int = 32, *, num_heads: int = 16,
                 feed_forward_width: int | None = None, patch_size: int = 14, temporal_patch_size: int = 2,
                 merge_size: int = 2, in_channels: int = 3, norm_eps: float = 1e-6, attention: str = 'sdpa'):
        super().__init__()
        check_patch(patch_size=patch_size, temporal_patch_size=temporal_patch_size)
        if width % (4 * num_heads):
            raise ValueError(f'model.vision_encoder: width {width} / num_heads {num_heads} must be a multiple of 4')
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.feed_forward_width = feed_forward_width or 4 * width
        self.patch_size, self.temporal_patch_size, self.in_channels = patch_size, temporal_patch_size, in_channels
        self.merge_size = merge_size
        self.patch_embed = PatchEmbed(in_channels * temporal_patch_size * patch_size**2, width)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, self.feed_forward_width, norm_eps, attention) for _ in range(depth))

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """Patches stay in block order; one attention segment for each frame group."""
        positions = torch.from_numpy(grid_positions(grids, self.merge_size))
        return VisionPlan(order=torch.arange(len(positions)),
                          token_order=torch.arange(len(positions) // self.merge_size**2), positions=positions,
                          attention=dict(full=AttentionPlan.from_lengths(frame_lengths(grids), causal=False)),
                          grids=tuple(grids))

    def forward(self, patches: torch.Tensor, plan: VisionPlan) -> torch.Tensor:
        """(N, C*F*P*P) normalised patches in plan order -> (N, D)."""
        x = self.patch_embed(patches)
        rotary = vision_rotary(plan.positions, self.width // self.num_heads, theta=10000.0)
        for block in self.blocks:
            x = block(x, rotary, plan.attention['full'])
        return x

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        return vision_flops(grid, width=self.width, depth=self.depth, feed_forward_matrices=2,
                            feed_forward_width=self.feed_forward_width,
                            patch_values=self.patch_embed.proj.in_features,
                            attended=[frame_lengths([grid])] * self.depth)
