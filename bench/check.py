"""Comparison of the kernels' speedups over the authors' code with the recorded ones."""

from __future__ import annotations

from dataclasses import dataclass

from bench.record import Row

TOLERANCE = 0.3
"""The part of its recorded value by which a ratio may fall. On a shared machine ratios drift by 10 to 20 %. Absolute
times drift far more and are never compared."""


@dataclass(frozen=True)
class Verdict:
    case: str
    recorded: float
    measured: float | None  # None if the case no longer exists

    @property
    def regressed(self) -> bool:
        return self.measured is None or self.measured < (1 - TOLERANCE) * self.recorded

    def __str__(self) -> str:
        if self.measured is None:
            return f"MISSING {self.case}: {self.recorded:.2f} times eager as recorded, not measured now"
        word = "SLOWER " if self.regressed else "ok     "
        return f"{word} {self.case}: {self.measured:.2f} times eager, {self.recorded:.2f} as recorded"


def compare(recorded: list[Row], measured: list[Row]) -> list[Verdict]:
    """Return a verdict on our implementation for each recorded case. New cases have no record and are skipped."""
    now = _ratios(measured)
    return [Verdict(case, ratio, now.get(case)) for case, ratio in _ratios(recorded).items()]


def _ratios(rows: list[Row]) -> dict[str, float]:
    return {row["case"]: row["ratio"] for row in rows if row["implementation"] == "ours"}
