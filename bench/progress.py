"""How long the parts of a benchmark take: an estimate at the start, and the time left before each part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

REFERENCE = "two idle cores of an AMD EPYC"
"""The machine that the suites' estimates are of."""


@dataclass(frozen=True)
class Part:
    """A suite, at one level of vector instructions if it is one of kernels."""

    suite: str
    level: str | None
    seconds: float  # as estimated

    def __str__(self) -> str:
        return f"{self.suite} at {self.level}" if self.level else self.suite


class Progress:
    """The time that parts take one after another. The finished ones tell how fast the machine is."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts, self._begun = parts, time.monotonic()

    def plan(self) -> str:
        """Return the estimate of the whole."""
        names = ", ".join(map(str, self._parts))
        return f"{len(self._parts)} parts, about {_minutes(self._left(0))} on {REFERENCE}: {names}"

    def at(self, number: int) -> str:
        """Return which part begins, counted from 0, and how long the rest takes."""
        return f"part {number + 1} of {len(self._parts)}: {self._parts[number]}; {_minutes(self.left(number))} left"

    def left(self, number: int) -> float:
        """Return the seconds that the parts from ``number`` on will take, at the pace of the ones before."""
        done = self._left(0) - self._left(number)
        pace = (time.monotonic() - self._begun) / done if done else 1.0
        return pace * self._left(number)

    def _left(self, number: int) -> float:
        return sum(part.seconds for part in self._parts[number:])


def _minutes(seconds: float) -> str:
    minutes = max(1, round(seconds / 60))
    return f"{minutes} minute{'s' * (minutes != 1)}"
