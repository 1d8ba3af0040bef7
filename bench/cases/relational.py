"""The losses on relations within a batch."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case, Step, step
from bench.eager import relational as eager
from sftn_fast import ops
from sftn_fast.ops import reference


def _similarity(name: str, authors: type[torch.nn.Module], shape: tuple[int, ...], device: str) -> dict[str, Step]:
    student: Tensor = torch.randn(shape, device=device).relu_().requires_grad_()  # as after a ReLU
    teacher = torch.randn(shape, device=device).relu_()
    losses = {"eager": authors(), "reference": getattr(reference, name), "ours": getattr(ops, name)}
    return {key: step([student], partial(loss, student, teacher)) for key, loss in losses.items()}


_sp = partial(_similarity, "sp_loss", eager.Similarity)
_pkt = partial(_similarity, "pkt_loss", eager.PKT)


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


CASES = [
    Case("SP (64, 256, 8, 8)", partial(_sp, (64, 256, 8, 8))),
    Case("SP (256, 512, 7, 7)", partial(_sp, (256, 512, 7, 7))),
    Case("PKT (64, 128)", partial(_pkt, (64, 128))),
    Case("PKT (64, 512)", partial(_pkt, (64, 512))),
    Case("PKT (256, 512)", partial(_pkt, (256, 512))),
    *RKD_CASES,
]
