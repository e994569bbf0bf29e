"""The decoder of Qwen2.5: pre-norm blocks, grouped-query attention with biased q, k, v, SwiGLU.

Source: Qwen2 Technical Report, arXiv 2407.10671, section 2.2.1; Qwen2.5-VL, arXiv 2502.13923, table 1.
Shapes: T packed tokens, E width, H heads, Hk key-value heads, d head width, V vocabulary.
"""
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from qvlkit.models.layers.attention import attention_backend
from qvlkit.models.layers.feed_forward import SwiGLU
from qvlkit.models.layers.norms import RMSNorm
from qvlkit.models.layers.rotary import apply_rotary
from qvlkit.registry import LANGUAGE_MODELS
from qvlkit.structures import AttentionPlan


class SelfAttention(nn.Module):
    """Causal attention within the plan's segments."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, attention: str):
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, num_heads * head_dim)
        self.k_proj = nn.Linear(width, num_kv_heads * head_dim)
        self.v_proj = nn.Linear(width, num_kv_heads * head_dim)
        self.o_proj = nn.Linear(num_heads * head_dim, width, bias=False)
        self.attend = attention_backend(attention)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan,
                remember=None) -> torch.Tensor:
        """(T, E) -> (T, E). `remember` takes the new keys and values and returns those to attend to."""
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary(q, *rotary), apply_rotary(k, *rotary)
        if remember is not None:
            k, v = remember(k, v)
        return self.o_proj(self.attend(q, k, v, plan).flatten(1))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, feed_forward_width: int,
                 norm_eps: float, attention: str):
        super().__init__()
        self.input_layernorm = RMSNorm(width, norm_eps)
        self.self_attn = SelfAttention(width, num_heads, num_kv_heads, head_dim, attention)
        self.post_attention_layernorm = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, feed_forward_width, bias=False)

    def forward(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan,
                remember=None) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, plan, remember)
        return x + self.mlp(self.post_attention_layernorm(x))


@LANGUAGE_MODELS.register_module()
class Qwen2Decoder(nn.Module):
    """Decoder-only transformer over packed embeddings.

    Args:
        width: E.
        depth: Number of layers.
        num_heads, num_kv_heads: H and Hk; Hk divides H.
        feed_forward_width: Hidden width of the SwiGLU feed-forward network.
        vocab_size: V, rows of the embedding; injected from the tokenizer where the config leaves it open.
        tie_embeddings: Use the embedding as the output head.
        norm_eps: Of every RMSNorm.
        attention: Name of the attention backend; injected.
    """

    def __init__(self, width: int, depth: int, *, num_heads: int, num_kv_heads: int, feed_forward_width: int,
                 vocab_size: int, tie_embeddings: bool = False, norm_eps: float = 1e-6, attention: str = 'sdpa'):
        super().__init__()
        if width % num_heads or num_heads % num_kv_heads:
            raise ValueError(f'model.language_model: width {width} must be a multiple of num_heads {num_heads}, and '
                             f'num_heads of num_kv_heads {num_kv_heads}')
        self.width, self.depth, self.vocab_size = width, depth, vocab_size
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, width // num_heads
        self.feed_forward_width = feed_forward_width
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            Layer(width, num_heads, num_kv_heads, self.head_dim, feed_forward_width, norm_eps, attention)
            for _ in range(depth))
        self.norm = RMSNorm(width, norm_eps)
        self.lm_head = None if tie_embeddings else nn.Linear(width, vocab_size, bias=False)

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, E): the output head, which is the embedding where they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """(T,) -> (T, E)."""
        return self.embed_tokens(token_ids)

    def forward(self, embeddings: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], plan: AttentionPlan,
                cache=None) -> torch.Tensor:
        """(T, E) -> (T, E), after the final norm. `cache.layer(i)` keeps keys and values of earlier tokens."""
        x = embeddings
        rotary = tuple(part.to(x.dtype) for part in rotary)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotary, plan, None if cache is None else cache.layer(index))
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(T, E) -> (T, V)."""
        return F.linear(hidden, self.head_weight)

    def flops(self, lengths: Sequence[int], num_logits: int) -> int:
        """Forward FLOPs over packed samples of these lengths, causal, with the head on `num_logits` rows."""
        kv_width = self.num_kv_heads * self.head_dim
        linear = 2 * self.width**2 + 2 * self.width * kv_width + 3 * self.width * self.feed_forward_width
        tokens = sum(lengths)
        attention = 2 * self.width * sum(length * (length + 1) for length in lengths)
        return self.depth * (2 * tokens * linear + attention) + 2 * num_logits * self.width * self.vocab_size
