"""The losses on relations between samples."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases.case import Case, Step, step
from bench.eager import relational as eager
from sftn_fast import ops
from sftn_fast.ops import reference


def _rkd(b: int, d: int, device: str) -> dict[str, Step]:
    student, teacher = torch.randn(b, d, device=device).requires_grad_(), torch.randn(b, d, device=device)
    authors = eager.RKD()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.rkd_loss(student, teacher),
        "ours": lambda: ops.rkd_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


RKD_CASES = [
    Case("RKD (64, 128)", partial(_rkd, 64, 128)),
    Case("RKD (256, 128)", partial(_rkd, 256, 128)),
    Case("RKD (256, 512)", partial(_rkd, 256, 512)),
]

CASES = [*RKD_CASES]
