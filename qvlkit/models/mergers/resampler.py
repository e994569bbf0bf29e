"""Resampler: a fixed number of learnt queries reads each frame group, whatever its size.

Source: the Perceiver Resampler of Flamingo, arXiv 2204.14198, section 3.1; one layer of cross-attention with 2-D
positions as in Qwen-VL, arXiv 2308.12966, section 2.1.
Shapes: N patches, D vision width, Q = R * C queries, G frame groups, M = G * Q visual tokens, E language width,
H heads.
"""
import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from qvlkit.models.layers.attention import attention_backend
from qvlkit.models.layers.rotary import inverse_frequencies
from qvlkit.models.layers.vision import frame_lengths
from qvlkit.registry import MERGERS
from qvlkit.structures import AttentionPlan, Grid, VisionPlan

PLAN, PLACES = 'resampler', 'resampler_places'  # of the vision plan's `attention` and `extra`


@MERGERS.register_module()
class ResamplerMerger(nn.Module):
    """R x C queries attend to the patches of one frame group; its tokens are their answers, row by row.

    Args:
        vision_dim: D; injected from the vision encoder.
        language_dim: E; injected from the language model.
        queries: [R, C], rows and columns of the grid that the queries stand for.
        num_heads: H; divides E.
        positions: Add 2-D sine positions to queries and keys: a query's place in its grid, and a patch's place in the
            same grid stretched over the picture.
        merge_size: Sides of a picture are multiples of this many patches (and so are the encoder's windows).
        attention: Name of the attention backend; injected.
    """

    def __init__(self, vision_dim: int, language_dim: int, *, queries: Sequence[int] = (4, 4), num_heads: int = 16,
                 positions: bool = True, merge_size: int = 2, norm_eps: float = 1e-6, attention: str = 'sdpa'):
        super().__init__()
        if len(queries) != 2 or not all(type(side) is int and side > 0 for side in queries):
            raise ValueError(f'model.merger.queries: expected rows and columns, two positive numbers, got {queries!r}')
        if language_dim % num_heads:
            raise ValueError(f'model.merger.num_heads: {num_heads} does not divide the {language_dim} of '
                             'model.language_model.width')
        if positions and language_dim % 4:
            raise ValueError(f'model.merger.positions: 2-D sine positions need a model.language_model.width that is a '
                             f'multiple of 4, got {language_dim}; set it to False')
        self.query_grid, self.num_heads, self.positions = tuple(queries), num_heads, positions
        self.merge_size, self.vision_dim, self.language_dim = merge_size, vision_dim, language_dim
        self.queries = nn.Embedding(math.prod(queries), language_dim)
        self.norm_q = nn.LayerNorm(language_dim, norm_eps)
        self.input_proj = nn.Linear(vision_dim, language_dim, bias=False)
        self.norm_kv = nn.LayerNorm(language_dim, norm_eps)
        self.q_proj = nn.Linear(language_dim, language_dim)
        self.k_proj = nn.Linear(language_dim, language_dim, bias=False)  # softmax does not see a bias of all keys
        self.v_proj = nn.Linear(language_dim, language_dim)
        self.out_proj = nn.Linear(language_dim, language_dim)
        self.norm_out = nn.LayerNorm(language_dim, norm_eps)
        self.proj = nn.Linear(language_dim, language_dim, bias=False)
        self.attend = attention_backend(attention)

    def token_grid(self, grid: Grid) -> Grid:
        """Frame groups, rows and columns of visual tokens of a picture of this grid, in patches."""
        return (grid[0], *self.query_grid)

    def num_tokens(self, grid: Grid) -> int:
        """Visual tokens of a picture of this grid, in patches."""
        return math.prod(self.token_grid(grid))

    def arrange(self, plan: VisionPlan) -> VisionPlan:
        """The encoder's plan with queries that read one frame group each; tokens come group by group, in order."""
        lengths = frame_lengths(plan.grids)
        queries = self.queries.num_embeddings
        sides = np.repeat(np.array([grid[1:] for grid in plan.grids]), [math.prod(grid) for grid in plan.grids], axis=0)
        places = (plan.positions.numpy() + 0.5) / sides * np.array(self.query_grid) - 0.5
        return dataclasses.replace(
            plan, token_order=torch.arange(len(lengths) * queries),
            attention={**plan.attention,
                       PLAN: AttentionPlan.from_lengths([queries] * len(lengths), lengths, causal=False)},
            extra={**plan.extra, PLACES: torch.from_numpy(places.astype(np.float32))})

    def forward(self, features: torch.Tensor, plan: VisionPlan) -> torch.Tensor:
        """(N, D) -> (M, E)."""
        attention = plan.attention[PLAN]
        queries, values = self.norm_q(self.queries.weight), self.norm_kv(self.input_proj(features))
        keys = values
        if self.positions:
            rows, columns = (torch.arange(side, dtype=torch.float32, device=features.device)
                             for side in self.query_grid)
            queries = queries + self._sine(torch.cartesian_prod(rows, columns)).to(queries.dtype)
            keys = keys + self._sine(plan.extra[PLACES]).to(keys.dtype)
        q = self.q_proj(queries).repeat(len(attention.lengths_q), 1)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)) for x in (q, self.k_proj(keys), self.v_proj(values)))
        return self.proj(self.norm_out(self.out_proj(self.attend(q, k, v, attention).flatten(1))))

    def flops(self, grid: Grid) -> int:
        """Forward FLOPs over one picture."""
        width, patches, tokens = self.language_dim, math.prod(grid), self.num_tokens(grid)
        queries = self.queries.num_embeddings
        linear = patches * width * (self.vision_dim + 2 * width) + (queries + 2 * tokens) * width**2
        return 2 * linear + 4 * queries * patches * width

    def _sine(self, places: torch.Tensor) -> torch.Tensor:
        """(..., 2) rows and columns in the queries' grid -> (..., E): sine and cosine of each, E / 4 frequencies."""
        angles = places[:, :, None] * inverse_frequencies(self.language_dim // 2, 10000.0, places.device)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).flatten(1)
