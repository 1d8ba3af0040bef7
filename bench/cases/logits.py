"""The losses on logits."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case, Step, step
from bench.eager import logits as eager
from sftn_fast import ops
from sftn_fast.ops import reference


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
    return {name: step([student], loss) for name, loss in losses.items()}


def _sftn(n: int, c: int, device: str) -> dict[str, Step]:
    teacher, *branches = (_logits(n, c, device, grad=True) for _ in range(4))
    target = torch.randint(c, (n,), device=device)
    authors = eager.SFTN()
    losses = {
        "eager": lambda: authors(teacher, branches, target),
        "reference": lambda: reference.sftn_loss(teacher, branches, target),
        "ours": lambda: ops.sftn_loss(teacher, branches, target),
    }
    return {name: step([teacher, *branches], loss) for name, loss in losses.items()}


CASES = [
    Case("KD + CE (64, 100)", partial(_kd_ce, 64, 100)),
    Case("KD + CE (256, 1000)", partial(_kd_ce, 256, 1000)),
    Case("KD + CE (1024, 1000)", partial(_kd_ce, 1024, 1000)),
    Case("SFTN, 3 branches (64, 100)", partial(_sftn, 64, 100)),
    Case("SFTN, 3 branches (256, 1000)", partial(_sftn, 256, 1000)),
]
