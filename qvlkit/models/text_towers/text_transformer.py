"""A text tower of its own: a small transformer over packed captions, with the decoder's blocks.

Source: Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020, section 2.4 (a causal
transformer read at the end-of-text token); blocks and rotary positions as in Qwen2.5, arXiv 2412.15115.
Shapes: T packed tokens, E width, B captions, W common width of the two towers, V vocabulary.
"""
import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from qvlkit.models.language_models.qwen2_decoder import Layer
from qvlkit.models.layers.norms import RMSNorm
from qvlkit.models.layers.segments import segment_mean
from qvlkit.models.position_encodings.rope_1d import RoPE1D
from qvlkit.registry import TEXT_TOWERS, near_names
from qvlkit.structures import ImageTextBatch

READ = ('last', 'mean')


@TEXT_TOWERS.register_module()
class TextTransformer(nn.Module):
    """Captions to one vector each.

    Args:
        width: E.
        depth: Number of layers.
        num_heads: Attention heads; E / num_heads must be even.
        feed_forward_width: Hidden width of the SwiGLU feed-forward network; 8 / 3 of E, rounded up to 8, if absent.
        causal: Whether a token sees only those before it.
        read: Where the caption's vector is taken: at its 'last' token, or as the 'mean' of all.
        embed_dim: W; injected from the towers' width.
        vocab_size: V; injected from the tokenizer where the config leaves it open.
        theta: Base of the rotary frequencies.
        attention: Name of the attention backend; injected.

    Raises:
        ValueError: The heads do not fit the width, or `read` is unknown.
    """

    def __init__(self, width: int, depth: int, *, num_heads: int, embed_dim: int, vocab_size: int,
                 feed_forward_width: int | None = None, causal: bool = True, read: str = 'last', theta: float = 1e4,
                 norm_eps: float = 1e-6, attention: str = 'sdpa'):
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(f'towers.text_tower: width {width} / num_heads {num_heads} must be an even number')
        if read not in READ:
            raise ValueError(f'towers.text_tower.read: expected one of {", ".join(READ)}, got {read!r}'
                             f'{near_names(read, list(READ))}')
        hidden = feed_forward_width or -(-width * 8 // 24) * 8
        self.width, self.depth, self.feed_forward_width, self.vocab_size = width, depth, hidden, vocab_size
        self.causal, self.read, self.embed_dim = causal, read, embed_dim
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.positions = RoPE1D(width // num_heads, theta=theta)
        self.layers = nn.ModuleList(Layer(width, num_heads, num_heads, width // num_heads, hidden, norm_eps, attention)
                                    for _ in range(depth))
        self.norm = RMSNorm(width, norm_eps)
        self.proj = nn.Linear(width, embed_dim, bias=False)

    def forward(self, batch: ImageTextBatch) -> torch.Tensor:
        """The batch's captions -> (B, W)."""
        x = self.embed_tokens(batch.token_ids)
        rotary = tuple(part.to(x.dtype) for part in self.positions.rotary(batch.position_ids))
        plan = batch.attention if self.causal else dataclasses.replace(batch.attention, causal=False)
        for layer in self.layers:
            x = layer(x, rotary, plan)
        if self.read == 'mean':
            return self.proj(segment_mean(self.norm(x), batch.caption_index, batch.caption_lengths))
        return self.proj(self.norm(x.index_select(0, batch.last_rows)))

    def flops(self, lengths: Sequence[int]) -> int:
        """Forward FLOPs over captions of these lengths."""
        linear = 4 * self.width**2 + 3 * self.width * self.feed_forward_width
        attended = sum(length * (length + 1) // 2 if self.causal else length**2 for length in lengths)
        return (self.depth * (2 * sum(lengths) * linear + 4 * self.width * attended)
                + 2 * len(lengths) * self.width * self.embed_dim)
