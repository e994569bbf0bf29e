"""Contrastive losses of pictures and captions: every other pair of the step, on any rank, is a negative.

Each rank gives its own rows and those of all ranks, and gets the sum over its own rows. Added over ranks and divided by
the number of pairs that is the loss of one process, however the rows are dealt. Own rows are taken in chunks, whose
similarities are made again in the backward pass, so that no more than chunk x all of them are ever held.
Shapes: n own pairs, N pairs of all ranks, W width, c rows of a chunk.
"""
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qvlkit.registry import LOSSES


class _Contrastive:
    """What the losses share: chunks of own rows, and similarities in full precision."""

    def __init__(self, *, chunk_rows: int = 1024):
        if chunk_rows < 1:
            raise ValueError(f'loss.chunk_rows: expected at least 1, got {chunk_rows}')
        self.chunk_rows = chunk_rows

    def __call__(self, image: torch.Tensor, text: torch.Tensor, all_images: torch.Tensor, all_texts: torch.Tensor, *,
                 first: int, scale: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Embeddings of unit length -> the sum over own pairs, a scalar in float32 or wider.

        Args:
            image, text: (n, W), this rank's own pairs.
            all_images, all_texts: (N, W), of all ranks; own pair i is row first + i of both.
            first: Where this rank's own rows begin.
            scale, bias: Scalars by which similarities are multiplied, and which is added; None adds nothing.
        """
        rows = image.shape[0]
        with torch.autocast(image.device.type, enabled=False):
            if rows <= self.chunk_rows:
                return self.part(image, text, all_images, all_texts, first, scale, bias)
            total: torch.Tensor | float = 0.0
            for start in range(0, rows, self.chunk_rows):
                own = slice(start, start + self.chunk_rows)
                total = total + checkpoint(self.part, image[own], text[own], all_images, all_texts, first + start,
                                           scale, bias, use_reentrant=False, preserve_rng_state=False)
            return total

    part: Callable[..., torch.Tensor]


@LOSSES.register_module()
class InfoNCE(_Contrastive):
    """Softmax over all captions for each picture and over all pictures for each caption, half of each.

    Source: arXiv 2103.00020, figure 3. A bias changes nothing: a softmax does not see it.

    Args:
        chunk_rows: c, rows whose similarities are held at one time.
    """

    @staticmethod
    def part(image, text, all_images, all_texts, first, scale, bias) -> torch.Tensor:
        """Sum over the rows given, all similarities at once."""
        targets = torch.arange(first, first + image.shape[0], device=image.device)
        return 0.5 * (F.cross_entropy(scale * (image @ all_texts.T), targets, reduction='sum') +
                      F.cross_entropy(scale * (text @ all_images.T), targets, reduction='sum'))


@LOSSES.register_module()
class SigLIP(_Contrastive):
    """Each picture with each caption is a question of its own, yes for its own and no for the others: -log sigmoid.

    Source: Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343, section 3.2; summed over the captions of a
    picture, not averaged. It wants a bias near -10, without which the many negatives outweigh all at the start.

    Args:
        chunk_rows: c, rows whose similarities are held at one time.
    """

    @staticmethod
    def part(image, text, all_images, all_texts, first, scale, bias) -> torch.Tensor:
        """Sum over the rows given, all similarities at once."""
        logits = scale * (image @ all_texts.T)
        logits = logits if bias is None else logits + bias
        own = logits.diagonal(first)  # the positives
        return F.softplus(logits).sum() - own.sum()  # -log sigmoid(x) = softplus(x) - x


def nearest_is_own(rows: torch.Tensor, others: torch.Tensor, *, first: int, chunk_rows: int = 1024) -> torch.Tensor:
    """(n, W) and (N, W) -> (n,) float: 1 where no other row is nearer to row i than row first + i; without gradient."""
    rows, others = rows.detach(), others.detach()
    hits = []
    with torch.autocast(rows.device.type, enabled=False):
        for start in range(0, rows.shape[0], chunk_rows):
            similarities = rows[start:start + chunk_rows] @ others.T
            hits.append((similarities.diagonal(first + start) >= similarities.amax(1)).float())
    return torch.cat(hits)
