"""Packing: every sample once, no row over its budget, no row that another could have taken in."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qvlkit.data.packing import pack


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 120))
def test_every_sample_once_and_no_row_over_the_budget(lengths, row_length):
    rows = pack(lengths, row_length)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    sizes = [sum(lengths[index] for index in row) for row in rows]
    assert all(0 < size <= row_length for size in sizes)
    # first fit: what opened a later row fitted into none of the rows before it
    assert all(size + lengths[row[0]] > row_length for after, row in enumerate(rows) for size in sizes[:after])


def test_first_fit_in_the_order_given():
    assert pack([5, 3, 4, 2], 8) == [[0, 1], [2, 3]]
    assert pack([2, 7, 6, 1], 8) == [[0, 2], [1, 3]]
    assert pack([4, 4, 4], 8) == [[0, 1], [2]]
    assert pack([], 8) == []


def test_a_sample_that_is_too_long_is_refused_and_one_that_just_fits_is_not():
    assert pack([8], 8) == [[0]]
    with pytest.raises(ValueError, match='sample 1 has 9 tokens, more than row_length 8'):
        pack([8, 9], 8)
