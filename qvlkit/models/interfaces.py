"""The four slots of a vision-language model, as Protocols with shapes. A part that fits its slot needs nothing else.

Shape letters: N patches, D vision width, M visual tokens, E language width, T packed tokens, A position axes,
V vocabulary, C*F*P*P values of a patch. There is no batch axis and no padding: pictures and samples lie end to end.

Each constructor takes what only that part decides (depth, window size, ...) and, by these names, what the builder
injects from the other parts:

    vision encoder       merge_size (from the merger), attention (backend name)
    merger               vision_dim = D, language_dim = E
    position encoding    head_dim (from the language model)
    language model       vocab_size (from the tokenizer, where the config leaves it open), attention

The two towers of contrastive pre-training have a vision encoder and two slots more (B pairs, W their common width):

    pooling              vision_dim = D, embed_dim = W
    text tower           embed_dim = W, vocab_size, attention; one that names the arguments language_model and
                         position_encoding receives the model's own, built
"""
from collections.abc import Sequence
from typing import Protocol

import torch

from qvlkit.structures import AttentionPlan, Grid, ImageTextBatch, Layout, VisionPlan


class VisionEncoder(Protocol):
    """Patches to features. Attributes: width = D, patch_size, temporal_patch_size, in_channels."""

    def plan(self, grids: Sequence[Grid]) -> VisionPlan:
        """Orders, positions and attention plans for these grids: pure, on the CPU, without weights."""

    def forward(self, patches: torch.Tensor, plan: VisionPlan) -> torch.Tensor:
        """(N, C*F*P*P), normalised, in plan order -> (N, D)."""

    def flops(self, grid: Grid) -> int:
        """Multiply-adds times two of the forward pass over one picture."""


class Merger(Protocol):
    """Features to visual tokens. Attribute: merge_size, the side of the block of patches that it joins."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D), each block of merge_size**2 rows contiguous -> (M, E)."""

    def num_tokens(self, grid: Grid) -> int:
        """How many visual tokens a picture of this grid (in patches) becomes."""

    def flops(self, grid: Grid) -> int:
        """As for the encoder."""


class PositionEncoding(Protocol):
    """Position ids of a sample, and their rotations. Attribute: num_axes = A."""

    def ids(self, layout: Layout) -> torch.Tensor:
        """A sample's spans of text and vision -> (A, T) int64: pure, on the CPU, starting at 0."""

    def rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(A, T) -> cosines and sines, each (T, head_dim / 2), float32."""


class LanguageModel(Protocol):
    """Embeddings to hidden states. Attributes: width = E, head_dim, vocab_size, head_weight (V, E)."""

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(T,) -> (T, E)."""

    def forward(self, embeddings: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan,
                cache=None) -> torch.Tensor:
        """(T, E) -> (T, E), after the final norm. With a cache, keys and values of earlier tokens are read from it."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, E) -> (T, V)."""

    def flops(self, lengths: Sequence[int], num_logits: int) -> int:
        """Forward pass over packed samples of these lengths, with the head on `num_logits` rows."""


class Pooling(Protocol):
    """Features of the patches to one vector for each picture."""

    def forward(self, features: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(N, D) in plan order; the picture (N,) that each belongs to; features (B,) of each picture -> (B, W)."""

    def flops(self, grid: Grid) -> int:
        """As for the encoder."""


class TextTower(Protocol):
    """Captions to one vector each."""

    def forward(self, batch: ImageTextBatch) -> torch.Tensor:
        """The batch's captions -> (B, W)."""

    def flops(self, lengths: Sequence[int]) -> int:
        """Forward pass over packed captions of these lengths."""
