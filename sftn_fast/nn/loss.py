"""What the modules around single ops share."""

from __future__ import annotations

from typing import Any

from torch import nn


class OpLoss(nn.Module):
    """A loss whose options are fixed when it is built. They are the op's keyword arguments, and stand in its repr."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def extra_repr(self) -> str:
        """The options, for repr."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
