"""Progress of a long read: a line every few seconds, with or without a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class ProgressLines:
    """Lines on ``stream``, one every ``interval`` seconds; work that ends sooner prints nothing.

    Args:
        what: The work, for example "reading images".
        total: Number of items.
        interval: Seconds between lines.
        stream: Standard error if None.
    """

    def __init__(self, what: str, total: int, *, interval: float = 3.0, stream: TextIO | None = None) -> None:
        self._what, self._total, self._interval = what, total, interval
        self._stream = sys.stderr if stream is None else stream
        self._began: tuple[float, int] | None = None  # time of the first update, items done by then

    def update(self, done: int) -> None:
        """Record that ``done`` items are done, and print a line if one is due."""
        now = time.monotonic()
        # The rate counts from the first update: the time before it, such as starting processes, says nothing about it.
        if self._began is None:
            self._began, self._written = (now, done), now
        if now - self._written < self._interval or done == self._began[1]:
            return
        self._written = now
        began, first = self._began
        left = (now - began) * (self._total - done) / (done - first)
        print(f"{self._what}: {done:,} of {self._total:,}, {left:.0f} s left", file=self._stream, flush=True)
