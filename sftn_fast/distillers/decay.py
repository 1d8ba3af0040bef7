"""A factor that falls from 1 to 0 over the last epochs."""

from __future__ import annotations

import math


class CosineDecay:
    """1 up to epoch ``start``, then half a cosine down to 0 at epoch ``end``; epochs count from 1.

    The factor is 1 before the first ``begin_epoch``, and always if ``start`` equals ``end``.
    """

    def __init__(self, start: int, end: int) -> None:
        if start > end:
            raise ValueError(f"decay_start must be at most decay_end, {end}, got {start}")
        self.start, self.end = start, end
        self.factor = 1.0

    def begin_epoch(self, epoch: int) -> bool:
        """Set the factor for ``epoch``, counted from 0; return whether it changed."""
        before, passed = self.factor, epoch + 1 - self.start
        length = self.end - self.start
        self.factor = (1 + math.cos(math.pi * min(passed / length, 1))) / 2 if length and passed > 0 else 1.0
        return self.factor != before
