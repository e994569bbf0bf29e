"""Tokenize: segments to token ids, with their targets and the rows of visual tokens."""
from collections.abc import Callable
from typing import Any

import numpy as np

from qvlkit.registry import TRANSFORMS
from qvlkit.structures import Grid, Sample, TokenizedText


@TRANSFORMS.register_module()
class Tokenize:
    """Fill `tokens`. Text is tokenized segment by segment; a medium takes as many placeholders as it has tokens.

    Args:
        tokenizer: From `qvlkit.data.tokenizers`; injected.
        num_tokens: Grid in patches -> number of visual tokens (the merger's); injected.
    """
    random = False

    def __init__(self, *, tokenizer: Any, num_tokens: Callable[[Grid], int]):
        self.tokenizer, self.num_tokens = tokenizer, num_tokens

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample:
        """Needs `segments`, and the grids of the media."""
        counts = [self.num_tokens(medium.grid) for medium in sample.media()]
        ids, lengths, targets, visual = [], [], [], []
        for segment in sample.segments:
            if segment.kind == 'text':
                piece = np.array(self.tokenizer.encode(segment.text), dtype=np.int64)
            else:
                count = counts[segment.media_index] if segment.kind == 'vision' else 1
                piece = np.full(count, self.tokenizer.special_id(segment.text), dtype=np.int64)
            ids.append(piece)
            lengths.append(len(piece))
            targets.append(segment.is_target)
            visual.append(segment.kind == 'vision')
        sample.tokens = TokenizedText(np.concatenate(ids), np.repeat(targets, lengths),
                                      np.flatnonzero(np.repeat(visual, lengths)))
        return sample
