"""Keys and values of earlier tokens, for decoding one token at a time.

Shapes: K rows of the cache, Hk key-value heads, d head width.
"""
from collections.abc import Callable

import torch


class KVCache:
    """One arena of K rows for each layer; each sequence owns a stretch of rows, sized for its prompt and its answer.

    Before each forward pass, set `rows` (T,) to the rows that the new tokens take. `reading` says whether attention
    reads the whole arena (decoding; the plan's key_index picks rows) or the new tokens alone (the prompt).
    """

    def __init__(self, depth: int, shape: tuple[int, int, int], *, device: torch.device, dtype: torch.dtype):
        self.keys = [torch.empty(shape, device=device, dtype=dtype) for _ in range(depth)]
        self.values = [torch.empty(shape, device=device, dtype=dtype) for _ in range(depth)]
        self.rows: torch.Tensor | None = None
        self.reading = False

    def layer(self, index: int) -> Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """A function that stores new keys and values of layer `index` and returns those to attend to."""

        def remember(keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            self.keys[index].index_copy_(0, self.rows, keys)
            self.values[index].index_copy_(0, self.rows, values)
            return (self.keys[index], self.values[index]) if self.reading else (keys, values)

        return remember
