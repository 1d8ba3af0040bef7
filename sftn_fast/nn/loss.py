"""Base class of the modules around a single op, and the mean of the losses in plain PyTorch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def mean(values: Tensor) -> Tensor:
    """Return the mean of ``values``, 0-dim; 0 if there are none, as in an empty batch."""
    return values.sum() / max(values.numel(), 1)


class OpLoss(nn.Module):
    """A loss with fixed options: the op's keyword arguments, which its repr shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """Return the options, for repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
