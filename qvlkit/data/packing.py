"""Packing: samples laid into rows of a token budget, whole.

Shapes: lengths are tokens of a sample; a row holds samples whose lengths sum to at most row_length.
"""
from collections.abc import Sequence


def pack(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Indices of the samples in each row: first fit in the order given; rows in the order they were opened.

    Longest first would fill rows a little better, but it would sort samples of one kind into one row: every step would
    then train on one kind alone. pack([5, 3, 4, 2], 8) is [[0, 1], [2, 3]]. Every length must be at most row_length.
    """
    rows: list[list[int]] = []
    free: list[int] = []
    for index, length in enumerate(lengths):
        if length > row_length:
            raise ValueError(f'sample {index} has {length} tokens, more than row_length {row_length}')
        row = next((row for row, space in enumerate(free) if length <= space), None)
        if row is None:
            rows.append([])
            free.append(row_length)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= length
    return rows
