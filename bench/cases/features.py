"""The losses between feature maps."""

from __future__ import annotations

from functools import partial

import torch

from bench.cases.case import Case, Step, step
from bench.eager import features as eager
from sftn_fast import ops
from sftn_fast.ops import reference

Shape = tuple[int, int, int, int]

# ---- behind a BatchNorm ----


def _adapted_hint(shape: Shape, device: str, *, channels_last: bool = False) -> dict[str, Step]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    features, teacher = (torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(2))
    features.requires_grad_()
    authors = eager.HintBehindBatchNorm(shape[1]).to(device)
    bn = torch.nn.BatchNorm2d(shape[1], device=device)
    arguments = features, teacher, bn.weight, bn.bias, bn.running_mean, bn.running_var
    leaves = [features, bn.weight, bn.bias]
    return {
        "eager": step([features, *authors.parameters()], lambda: authors(features, teacher)),
        "reference": step(leaves, lambda: reference.adapted_hint_loss(*arguments)),
        "ours": step(leaves, lambda: ops.adapted_hint_loss(*arguments)),
    }


ADAPTATION_CASES = [
    Case("BatchNorm + ReLU + MSE (64, 256, 8, 8)", partial(_adapted_hint, (64, 256, 8, 8))),
    Case(
        "BatchNorm + ReLU + MSE (64, 256, 8, 8), channels last",
        partial(_adapted_hint, (64, 256, 8, 8), channels_last=True),
    ),
    Case("BatchNorm + ReLU + MSE (64, 64, 32, 32)", partial(_adapted_hint, (64, 64, 32, 32))),
]

CASES = [*ADAPTATION_CASES]
