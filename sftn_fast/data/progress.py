"""How far a long read is: a line now and then, also where there is no terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Writes a line to ``stream`` every ``interval`` seconds, so that what is done sooner says nothing.

    Args:
        what: What is being done, as in "reading images".
        total: How many there are to do.
        interval: Seconds between lines.
        stream: Standard error if None.
    """

    def __init__(self, what: str, total: int, *, interval: float = 3.0, stream: TextIO | None = None) -> None:
        self._what, self._total, self._interval = what, total, interval
        self._stream = sys.stderr if stream is None else stream
        self._began: tuple[float, int] | None = None  # when, and how many were done

    def update(self, done: int) -> None:
        """Note that ``done`` of them are done."""
        now = time.monotonic()
        if self._began is None:  # what came before, such as the start of processes, says nothing of the speed
            self._began, self._written = (now, done), now
        if now - self._written < self._interval or done == self._began[1]:
            return
        self._written = now
        began, first = self._began
        left = (now - began) * (self._total - done) / (done - first)
        print(f"{self._what}: {done:,} of {self._total:,}, {left:.0f} s left", file=self._stream, flush=True)
