"""Teacher logits from a cache instead of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from sftn_fast.models import Features


class LogitsSource(Protocol):
    """Logits of a frozen teacher by the indices of the images in the training data."""

    def __call__(self, index: Tensor, teacher: Callable[[], Tensor]) -> Tensor:
        """Return logits [N, num_classes] of the images at ``index`` [N]; run ``teacher`` for images not stored."""

    def watch(self, teacher: nn.Module) -> None:
        """Record the weights of ``teacher``, so that logits of other weights are never returned."""

    def begin_epoch(self, epoch: int) -> bool:
        """Prepare ``epoch``, counted from 0; return whether a step reads other memory than in the previous epoch."""


class OnlyLogits(Features):
    """Features of a teacher that did not run: reading anything but ``logits`` raises AttributeError."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
