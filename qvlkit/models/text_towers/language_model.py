"""The config's language model as text tower: a caption is the hidden state of its last token.

Source: the causal text tower of arXiv 2103.00020, section 2.4, with the decoder that later stages train.
Shapes: T packed tokens, E width, B captions, W common width of the two towers.
"""
from collections.abc import Sequence

import torch
from torch import nn

from qvlkit.registry import TEXT_TOWERS
from qvlkit.structures import ImageTextBatch


@TEXT_TOWERS.register_module()
class LanguageModelTower(nn.Module):
    """Captions to one vector each.

    Its own weight is the projection alone. The language model is a part of the two towers beside it, `language_model`,
    so that a stage freezes it, and a later stage finds its weights, by the usual name.

    Args:
        language_model, position_encoding: Built parts; injected.
        embed_dim: W; injected from the towers' width.
    """

    def __init__(self, language_model: nn.Module, position_encoding: nn.Module, *, embed_dim: int):
        super().__init__()
        self._parts = (language_model, position_encoding)  # in a tuple: not children, hence saved once
        self.proj = nn.Linear(language_model.width, embed_dim, bias=False)

    def forward(self, batch: ImageTextBatch) -> torch.Tensor:
        """The batch's captions -> (B, W). Text counts alike along all axes of positions."""
        language_model, positions = self._parts
        rotary = positions.rotary(batch.position_ids.expand(positions.num_axes, -1))
        hidden = language_model(language_model.embed(batch.token_ids), rotary, batch.attention)
        return self.proj(hidden.index_select(0, batch.last_rows))

    def flops(self, lengths: Sequence[int]) -> int:
        """Forward FLOPs over captions of these lengths; the language model's head does not run."""
        return self._parts[0].flops(lengths, 0) + 2 * len(lengths) * self.proj.weight.numel()
