"""Whether the kernels are as much faster than the authors' code as they were when it was recorded."""

from __future__ import annotations

from dataclasses import dataclass

from bench.record import Row

TOLERANCE = 0.3
"""A ratio may fall by this part of what it was. Ratios within one run drift by a tenth or two on a shared machine;
absolute times, which drift far more, are never compared."""


@dataclass(frozen=True)
class Verdict:
    case: str
    recorded: float
    measured: float | None  # None: the case is gone

    @property
    def regressed(self) -> bool:
        return self.measured is None or self.measured < (1 - TOLERANCE) * self.recorded

    def __str__(self) -> str:
        if self.measured is None:
            return f"MISSING {self.case}: {self.recorded:.2f} times eager as recorded, not measured now"
        word = "SLOWER " if self.regressed else "ok     "
        return f"{word} {self.case}: {self.measured:.2f} times eager, {self.recorded:.2f} as recorded"


def compare(recorded: list[Row], measured: list[Row]) -> list[Verdict]:
    """One verdict for each recorded case, about our implementation. New cases have nothing to be held against."""
    now = _ratios(measured)
    return [Verdict(case, ratio, now.get(case)) for case, ratio in _ratios(recorded).items()]


def _ratios(rows: list[Row]) -> dict[str, float]:
    return {row["case"]: row["ratio"] for row in rows if row["implementation"] == "ours"}
