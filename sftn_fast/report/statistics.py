"""Means, and paired differences between two rows of results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST_TESTED = 3
"""Pairs needed for a p value."""
CONFIDENCE = 0.95


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Return ``mean ± sample standard deviation``; the mean alone for a single value, a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def confidence_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of the mean by Student's t; None for fewer than two or for equal values."""
    return Paired(tuple(values)).interval if values else None


@dataclass(frozen=True)
class Paired:
    """Differences between two rows, one for each seed that both rows have."""

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
        low, high = self._t_test().confidence_interval(CONFIDENCE)
        return float(low), float(high)

    @property
    def p(self) -> float | None:
        """p value of the two-sided paired t-test; None below three pairs and for equal differences."""
        return None if self.n < FEWEST_TESTED or self._are_equal else float(self._t_test().pvalue)

    def _t_test(self) -> Any:
        from scipy.stats import ttest_rel

        return ttest_rel(self.differences, [0.0] * self.n)

    @property
    def _are_equal(self) -> bool:
        """Whether there is no spread to test against: on few test images, seeds easily give the same difference."""
        return max(self.differences) - min(self.differences) < 1e-9

    def __str__(self) -> str:
        deviation = f" ± {statistics.stdev(self.differences):.2f}" if self.n > 1 else ""
        return signed(self.mean) + deviation

    def in_words(self) -> str:
        """Return mean, deviation, confidence interval, p value and number of pairs in one phrase."""
        parts = [f"{self} points"]
        if self.interval:
            parts.append(f"95 % CI {' to '.join(map(signed, self.interval))}")
        if self.p is not None:
            parts.append(f"p = {format_p(self.p)}".replace("= <", "<"))
        how = "paired by seed" if self.p is None else "paired t-test"
        return f"{', '.join(parts)} ({how}, n = {self.n})"


def paired(better: Mapping[int, float], baseline: Mapping[int, float]) -> Paired | None:
    """Return ``better`` minus ``baseline``, both by seed; None if they have no seed in common."""
    seeds = sorted(better.keys() & baseline.keys())
    return Paired(tuple(better[seed] - baseline[seed] for seed in seeds)) if seeds else None


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for multiple comparisons by Holm's step-down method.

    None stands for a comparison without a test. It stays None and does not count.
    """
    tested = sorted((p, i) for i, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    least = 0.0
    for rank, (p, i) in enumerate(tested):
        least = max(least, min(1.0, p * (len(tested) - rank)))
        corrected[i] = least
    return corrected


def signed(points: float) -> str:
    """Return a difference as it is printed: with its sign, except for zero."""
    text = f"{points:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def format_p(p: float) -> str:
    """Return a p value as it is printed: to three decimals, or as ``< 0.001``."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"
