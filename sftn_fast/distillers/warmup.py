"""A factor that grows from 0 to 1 over the first epochs."""

from __future__ import annotations


class WarmUp:
    """``min(epoch / epochs, 1)`` with epochs counted from 1, as in mdistiller; 1 before the first ``begin_epoch``."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.factor = 1.0

    def begin_epoch(self, epoch: int) -> bool:
        """Set the factor for ``epoch``, counted from 0; return whether it changed."""
        before, self.factor = self.factor, min((epoch + 1) / self.epochs, 1.0) if self.epochs else 1.0
        return self.factor != before
