"""Base class of the modules around a single op."""

from __future__ import annotations

from typing import Any

from torch import nn


class OpLoss(nn.Module):
    """A loss with fixed options: the op's keyword arguments, which its repr shows."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """Return the options, for repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
