"""The definition of a case: a loss at a size, as functions that run forward and backward once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Forward and backward of a loss. A call returns the loss; ``loss()`` returns it alone or first in a tuple."""

    leaves: list[Tensor]
    loss: Callable[[], Any]

    def __call__(self) -> Tensor:
        for leaf in self.leaves:
            leaf.grad = None
        result = self.loss()
        total = result[0] if isinstance(result, tuple) else result
        if total.requires_grad:
            total.backward()
        return total.detach()


def step(leaves: list[Tensor], loss: Callable[[], Any]) -> Step:
    return Step(leaves, loss)


def tensor_bytes(shape: Sequence[int], times: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the bytes moved by reading or writing a tensor so many times."""
    return dtype.itemsize * math.prod(shape) * times


def suffix(dtype: torch.dtype) -> str:
    """Return the end of a case's name, nothing for float32."""
    return "" if dtype == torch.float32 else f" {str(dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Case:
    """A loss at a size. `build(device)` gives the implementations by name, "eager" first, all on the same tensors.

    Each is a :class:`Step`, or a plain function if there is nothing to differentiate or compile. `bytes_moved` is the
    number of bytes that any implementation must read and write, forward and backward.
    """

    name: str
    build: Callable[[str], Mapping[str, Callable[[], Tensor]]]
    bytes_moved: int | None = None

    def steps(self, device: str) -> dict[str, Callable[[], Tensor]]:
        torch.manual_seed(0)
        return dict(self.build(device))
