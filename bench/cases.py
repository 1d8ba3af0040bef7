"""What is measured: losses, sizes and implementations, as functions that run forward and backward once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import eager
from sftn_fast import ops
from sftn_fast.ops import reference

Step = Callable[[], Tensor]  # forward and backward; returns the loss


@dataclass(frozen=True)
class Case:
    """A loss at a size. `steps` gives the implementations by name, "eager" first, all on the same tensors."""

    loss: str
    n: int
    c: int
    build: Callable[[int, int, str], dict[str, Step]]

    @property
    def name(self) -> str:
        return f"{self.loss} ({self.n}, {self.c})"

    def steps(self, device: str) -> dict[str, Step]:
        torch.manual_seed(0)
        return self.build(self.n, self.c, device)


def _step(leaves: list[Tensor], loss: Callable[[], Any]) -> Step:
    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        result = loss()
        total = result[0] if isinstance(result, tuple) else result
        total.backward()
        return total.detach()

    return run


def _logits(n: int, c: int, device: str, *, grad: bool) -> Tensor:
    return (3 * torch.randn(n, c, device=device)).requires_grad_(grad)


def _kd_ce(n: int, c: int, device: str) -> dict[str, Step]:
    student, teacher = _logits(n, c, device, grad=True), _logits(n, c, device, grad=False)
    target = torch.randint(c, (n,), device=device)
    authors = eager.KDWithCrossEntropy()
    losses = {
        "eager": lambda: authors(student, teacher, target),
        "reference": lambda: reference.kd_ce_loss(student, teacher, target),
        "ours": lambda: ops.kd_ce_loss(student, teacher, target),
    }
    return {name: _step([student], loss) for name, loss in losses.items()}


def _sftn(n: int, c: int, device: str) -> dict[str, Step]:
    teacher, *branches = (_logits(n, c, device, grad=True) for _ in range(4))
    target = torch.randint(c, (n,), device=device)
    authors = eager.SFTN()
    losses = {
        "eager": lambda: authors(teacher, branches, target),
        "reference": lambda: reference.sftn_loss(teacher, branches, target),
        "ours": lambda: ops.sftn_loss(teacher, branches, target),
    }
    return {name: _step([teacher, *branches], loss) for name, loss in losses.items()}


LOGITS = [
    Case("KD + CE", 64, 100, _kd_ce),
    Case("KD + CE", 256, 1000, _kd_ce),
    Case("KD + CE", 1024, 1000, _kd_ce),
    Case("SFTN, 3 branches", 64, 100, _sftn),
    Case("SFTN, 3 branches", 256, 1000, _sftn),
]
CASES = {"logits": LOGITS}
