"""The choice of cases by pairs."""

from __future__ import annotations

from itertools import combinations, product
from math import prod

import pytest
from pairing import choose_pairs, paired

SIZES = [(1,), (4,), (3, 2), (1, 5, 1), (4, 4, 4), (30, 4, 3), (2, 3, 4, 5), (7, 8, 3, 2, 2), (0, 3)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_every_two_values_meet(sizes):
    axes = [[f"{name}{i}" for i in range(size)] for name, size in zip("abcde", sizes, strict=False)]
    rows = choose_pairs(*axes)
    for i, j in combinations(range(len(axes)), 2):
        assert {(row[i], row[j]) for row in rows} == set(product(axes[i], axes[j]))
    assert len(set(rows)) == len(rows) <= prod(sizes)
    assert len(rows) >= max(sizes) or 0 in sizes


def test_rows_are_few():
    """The two longest axes alone need their product; the others fit beside them."""
    assert len(choose_pairs(range(30), range(4), range(3))) == 120
    assert len(choose_pairs(range(10), range(4), range(3), range(2))) <= 42


def test_without_a_value_for_an_axis_there_is_no_row():
    assert choose_pairs([]) == choose_pairs("ab", [], "xy") == choose_pairs(range(3), range(2), []) == []


def test_each_call_gives_the_same_rows():
    assert choose_pairs("abc", "xyz", [1, 2]) == choose_pairs("abc", "xyz", [1, 2])


def test_equal_values_of_two_axes_are_apart():
    assert set(choose_pairs([True, False], [True, False])) == set(product([True, False], repeat=2))


@paired(first=[1, 2], second=["a", "b", "c"], third=[None])
def test_the_mark_fills_the_arguments(first, second, third):
    assert first in (1, 2) and second in ("a", "b", "c") and third is None
