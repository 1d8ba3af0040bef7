"""Paired differences: their test, their interval, and the correction for many."""

from __future__ import annotations

import math
import statistics

import pytest

from sftn_fast.report.statistics import Paired, holm, paired, signed


def test_only_seeds_that_both_have_are_paired():
    difference = paired({0: 5.0, 1: 7.0, 9: 100.0}, {1: 6.5, 0: 4.0, 8: 0.0})
    assert difference is not None and difference.differences == (1.0, 0.5)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_t_of_five_differences_by_hand():
    # t = mean / (s / sqrt n) with 4 degrees of freedom, whose distribution function has a closed form.
    difference = Paired((1.0, 2.0, 3.0, 2.0, 4.0))
    spread = statistics.stdev(difference.differences) / math.sqrt(5)
    t = difference.mean / spread
    x = 4 / (4 + t * t)
    p = 1 - math.sqrt(1 - x) * (1 + x / 2)
    assert difference.p == pytest.approx(p, rel=1e-9)
    assert difference.interval == pytest.approx((2.4 - 2.776445105 * spread, 2.4 + 2.776445105 * spread), rel=1e-8)


QUANTILE_975 = {1: 12.706204736174694, 2: 4.302652729749462, 4: 2.7764451051977934, 9: 2.262157162798205}
"""Of Student's t, by degrees of freedom."""


@pytest.mark.parametrize(
    "differences",
    [
        (1.0, 2.0),
        (-0.13, 0.87, -1.13),
        (60.5, 61.25, 61.0),
        (1e-3, 1.5e-3, 0.9e-3),
        (1.0, 2.0, 3.0, 2.0, 4.0),
        (-0.52, 0.31, 0.07, -0.11, 0.23, 0.4, -0.19, 0.05, 0.66, -0.02),
    ],
)
def test_the_interval_is_the_mean_and_a_quantile_of_standard_errors(differences: tuple[float, ...]) -> None:
    n = len(differences)
    half = QUANTILE_975[n - 1] * statistics.stdev(differences) / math.sqrt(n)
    mean = statistics.fmean(differences)
    assert Paired(differences).interval == pytest.approx((mean - half, mean + half), abs=1e-9)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ((1.0,), "+1.00 points (paired by seed, n = 1)"),
        ((1.0, 1.0), "+1.00 ± 0.00 points (paired by seed, n = 2)"),
        ((1.0, 2.0), "+1.50 ± 0.71 points, 95 % CI -4.85 to +7.85 (paired by seed, n = 2)"),
        ((1.0, 2.0, 3.0), "+2.00 ± 1.00 points, 95 % CI -0.48 to +4.48, p = 0.074 (paired t-test, n = 3)"),
        ((-5.0, -5.01, -5.02), "-5.01 ± 0.01 points, 95 % CI -5.03 to -4.99, p < 0.001 (paired t-test, n = 3)"),
    ],
)
def test_a_difference_in_words(differences: tuple[float, ...], words: str) -> None:
    assert Paired(differences).in_words() == words


@pytest.mark.parametrize(
    ("differences", "has_interval", "has_p"),
    [
        ((1.0,), False, False),
        ((1.0, 2.0), True, False),
        ((1.0, 2.0, 4.0), True, True),
        ((0.3, 0.1 + 0.2, 0.3), False, False),
    ],
)
def test_what_too_few_or_equal_differences_do_not_have(differences, has_interval, has_p):
    difference = Paired(differences)
    assert (difference.interval is not None, difference.p is not None) == (has_interval, has_p)
    assert ("p = " in difference.in_words(), "95 % CI" in difference.in_words()) == (has_p, has_interval)


@pytest.mark.parametrize(
    ("values", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, None, 0.01], [0.04, None, 0.02]),
        ([0.6, 0.5], [1.0, 1.0]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm(values, corrected):
    assert holm(values) == pytest.approx(corrected)


def test_zero_has_no_sign():
    assert [signed(x) for x in (-0.001, 0.0, 0.004, -0.006, 1.0)] == ["0.00", "0.00", "0.00", "-0.01", "+1.00"]
