"""Teacher logits that come from somewhere else than the teacher's own pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from sftn_fast.models import Features


class LogitsSource(Protocol):
    """Logits of a frozen teacher, by the images' numbers in the training data."""

    def __call__(self, index: Tensor, teacher: Callable[[], Tensor]) -> Tensor:
        """Return the logits [N, num_classes] of the images at ``index`` [N]; call ``teacher`` for unknown ones."""

    def watch(self, teacher: nn.Module) -> None:
        """Remember the weights of ``teacher``, so that logits of other weights are never returned."""

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare ``epoch``, counted from 0; return whether a step reads other memory than in the epoch before."""


class OnlyLogits(Features):
    """Features of a teacher whose pass was left out: reading anything but ``logits`` raises AttributeError."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
