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
    student: Tensor = torch.randn(shape, device=device).relu_().requires_grad_()  # as behind a ReLU
    teacher = torch.randn(shape, device=device).relu_()
    losses = {"eager": authors(), "reference": getattr(reference, name), "ours": getattr(ops, name)}
    return {key: step([student], partial(loss, student, teacher)) for key, loss in losses.items()}


_sp = partial(_similarity, "sp_loss", eager.Similarity)
_pkt = partial(_similarity, "pkt_loss", eager.PKT)

CASES = [
    Case("SP (64, 256, 8, 8)", partial(_sp, (64, 256, 8, 8))),
    Case("SP (256, 512, 7, 7)", partial(_sp, (256, 512, 7, 7))),
    Case("PKT (64, 128)", partial(_pkt, (64, 128))),
    Case("PKT (64, 512)", partial(_pkt, (64, 512))),
    Case("PKT (256, 512)", partial(_pkt, (256, 512))),
]
