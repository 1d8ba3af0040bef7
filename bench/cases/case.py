"""What a case is: a loss at a size, as functions that run forward and backward once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Tensor]  # forward and backward; returns the loss


@dataclass(frozen=True)
class Case:
    """A loss at a size. `build(device)` gives the implementations by name, "eager" first, all on the same tensors."""

    name: str
    build: Callable[[str], dict[str, Step]]

    def steps(self, device: str) -> dict[str, Step]:
        torch.manual_seed(0)
        return self.build(device)


def step(leaves: list[Tensor], loss: Callable[[], Any]) -> Step:
    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        result = loss()
        total = result[0] if isinstance(result, tuple) else result
        total.backward()
        return total.detach()

    return run
