"""Reductions over segments of rows that belong together, named by an index: no padding, no loop.

Shapes: N rows, B segments. `index` (N,) int64 names the segment of each row, in any order. Sums are made in float32 or
wider.
"""
import torch


def segment_sum(rows: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    """(N, ...) -> (B, ...), in float32 or wider."""
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    return rows.new_zeros(segments, *rows.shape[1:]).index_add(0, index, rows)


def segment_mean(rows: torch.Tensor, index: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """(N, D) -> (B, D), in the dtype of the rows. lengths (B,): rows of each segment, at least 1."""
    sums = segment_sum(rows, index, lengths.shape[0])
    return (sums / lengths[:, None]).to(rows.dtype)


def segment_softmax(scores: torch.Tensor, index: torch.Tensor, segments: int) -> torch.Tensor:
    """(N, H) -> (N, H): within each segment the weights of a column sum to 1. In float32 or wider."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    places = index[:, None].expand_as(scores)
    largest = scores.detach().new_full((segments, scores.shape[1]), -torch.inf).scatter_reduce(
        0, places, scores.detach(), 'amax')
    weights = (scores - largest.index_select(0, index)).exp()
    return weights / segment_sum(weights, index, segments).index_select(0, index)
