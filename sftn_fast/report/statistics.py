"""Means, and differences between two rows that share their seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST_TESTED = 3
"""Pairs below which no p value is given."""


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """``mean ± sample deviation``; the mean alone for a single value, a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


@dataclass(frozen=True)
class Paired:
    """Differences between two rows, one for each seed that both have."""

    differences: tuple[float, ...]

    @property
    def n(self) -> int:
        """Number of pairs, at least 1."""
        return len(self.differences)

    @property
    def mean(self) -> float:
        """Mean difference."""
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval of the mean by Student's t; None for a single pair or equal differences."""
        if self._are_equal:
            return None
        from scipy.stats import t

        half = float(t.ppf(0.975, self.n - 1)) * statistics.stdev(self.differences) / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float | None:
        """Two-sided paired t-test; None below three pairs, or where all differences are equal."""
        if self.n < FEWEST_TESTED or self._are_equal:
            return None
        from scipy.stats import ttest_rel

        return float(ttest_rel(self.differences, [0.0] * self.n).pvalue)

    @property
    def _are_equal(self) -> bool:
        """No spread, hence nothing to judge by: a few hundred test images easily give the same difference twice."""
        return max(self.differences) - min(self.differences) < 1e-9

    def __str__(self) -> str:
        deviation = f" ± {statistics.stdev(self.differences):.2f}" if self.n > 1 else ""
        return signed(self.mean) + deviation

    def in_words(self) -> str:
        """The difference with all that belongs to it."""
        parts = [f"{self} points, paired by seed, n = {self.n}"]
        if self.interval:
            parts.append(f"95 % CI {' to '.join(map(signed, self.interval))}")
        if self.p is not None:
            parts.append(f"p = {format_p(self.p)}")
        return ", ".join(parts)


def paired(better: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """``better`` less ``baseline``, both by seed; None where they share no seed."""
    seeds = sorted(better.keys() & baseline.keys())
    return Paired(tuple(better[seed] - baseline[seed] for seed in seeds)) if seeds else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number by Holm's step-down method; None stays, and is not counted."""
    tested = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (p, i) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - rank)))
        corrected[i] = least
    return corrected


def signed(points: float) -> str:
    """A difference as it is printed; zero has no sign to mislead."""
    text = f"{points:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def format_p(p: float) -> str:
    """A p value as it is printed: three digits, or less than the least of them."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
