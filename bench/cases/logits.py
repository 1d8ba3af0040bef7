"""The losses on logits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case, Step, float_bytes, step
from bench.eager import liger
from bench.eager import logits as eager
from sftn_fast import ops
from sftn_fast.ops import reference


def _logits(n: int, c: int, device: str, *, grad: bool) -> Tensor:
    return (3 * torch.randn(n, c, device=device)).requires_grad_(grad)


def kd_ce(n: int, c: int, device: str) -> dict[str, Step]:
    student, teacher = _logits(n, c, device, grad=True), _logits(n, c, device, grad=False)
    target = torch.randint(c, (n,), device=device)
    authors = eager.KDWithCrossEntropy()
    losses = {
        "eager": lambda: authors(student, teacher, target),
        "reference": lambda: reference.kd_ce_loss(student, teacher, target),
        "ours": lambda: ops.kd_ce_loss(student, teacher, target),
    }
    if device == "cuda" and liger.installed():
        losses["liger"] = liger.kd_with_cross_entropy(student, teacher, target)
    return {name: step([student], loss) for name, loss in losses.items()}


def sftn(n: int, c: int, device: str, *, num_branches: int = 3) -> dict[str, Step]:
    teacher, *branches = (_logits(n, c, device, grad=True) for _ in range(1 + num_branches))
    target = torch.randint(c, (n,), device=device)
    authors = eager.SFTN()
    losses = {
        "eager": lambda: authors(teacher, branches, target),
        "reference": lambda: reference.sftn_loss(teacher, branches, target),
        "ours": lambda: ops.sftn_loss(teacher, branches, target),
    }
    return {name: step([teacher, *branches], loss) for name, loss in losses.items()}


def _bytes(n: int, c: int, tensors: int, gradients: int) -> int:
    """Return the bytes moved if each tensor is read forward and backward and each gradient written."""
    return float_bytes((n, c), 2 * tensors + gradients)


KD_SIZES = [(64, 100), (256, 1000), (1024, 1000)]
SFTN_SIZES = [(64, 100), (256, 1000)]

CASES = [
    *(Case(f"KD + CE ({n}, {c})", partial(kd_ce, n, c), _bytes(n, c, 2, 1)) for n, c in KD_SIZES),
    *(Case(f"SFTN, 3 branches ({n}, {c})", partial(sftn, n, c), _bytes(n, c, 4, 4)) for n, c in SFTN_SIZES),
]
