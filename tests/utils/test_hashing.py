"""The hash is the same in every process and keeps parts apart."""
import itertools

import pytest

from qvlkit.utils.hashing import stable_hash


def test_the_value_is_fixed():
    assert stable_hash(0, 3, 'chat.json[7]') == 1276256606973191801
    assert 0 <= stable_hash() < 2 ** 63


def test_parts_do_not_run_into_each_other():
    keys = [('ab', 'c'), ('a', 'bc'), ('abc',), ('', 'abc'), ('abc', ''), (1,), (1.0,), (True,), ('1',), (b'1',),
            (None,), ('None',), (1, 2), (12,), (2, 1), ('\ud800',)]
    hashes = [stable_hash(*key) for key in keys]
    assert all(first != second for first, second in itertools.combinations(hashes, 2))


def test_the_bits_are_spread():
    values = [stable_hash(0, 0, str(index)) for index in range(4000)]
    counts = [sum(value >> bit & 1 for value in values) for bit in range(63)]
    assert all(1800 < count < 2200 for count in counts)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match='list'):
        stable_hash(0, [1])
