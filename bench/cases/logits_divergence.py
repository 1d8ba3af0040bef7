"""The divergences of logits: DKD, LSKD, NKD, RLD, TTM, alpha-beta and Jensen-Shannon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.cases.case import Case, Step, step, suffix, tensor_bytes
from bench.eager import logits_divergence as eager
from sftn_fast import ops
from sftn_fast.ops import reference

Loss = Callable[[Tensor, Tensor, Tensor], Any]
LSKD = {"temperature": 2.0, "kd_weight": 9.0, "ce_weight": 0.1, "standardize": True}

# The authors' code, and the same of a module: `ops` or `reference`.
LOSSES: dict[str, tuple[Loss, Callable[[Any], Loss]]] = {
    "DKD": (eager.dkd, lambda module: module.dkd_loss),
    "LSKD + CE": (eager.lskd, lambda module: partial(module.kd_ce_loss, **LSKD)),
    "NKD": (eager.nkd, lambda module: module.nkd_loss),
    "RLD": (eager.rld, lambda module: module.rld_loss),
    "WTTM": (
        lambda student, teacher, _: eager.wttm(student, teacher),
        lambda module: lambda student, teacher, _: module.ttm_loss(student, teacher, weighted=True),
    ),
    "AB divergence": (
        lambda student, teacher, _: eager.alpha_beta(student, teacher),
        lambda module: lambda student, teacher, _: module.divergence_loss(student, teacher),
    ),
    "JS divergence": (
        lambda student, teacher, _: eager.jensen_shannon(student, teacher),
        lambda module: lambda student, teacher, _: module.divergence_loss(student, teacher, kind="jsd", beta=0.5),
    ),
}


def pair(name: str, n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    student, teacher = ((3 * torch.randn(n, c, device=device)).to(dtype) for _ in range(2))
    student.requires_grad_()
    target = torch.randint(c, (n,), device=device)
    authors, of_module = LOSSES[name]
    losses = {"eager": authors, "reference": of_module(reference), "ours": of_module(ops)}
    return {key: step([student], partial(loss, student, teacher, target)) for key, loss in losses.items()}


def _case(name: str, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Case:
    """Build a case that reads both tensors once, and writes the gradient."""
    return Case(f"{name} {size}{suffix(dtype)}", partial(pair, name, *size, dtype=dtype), tensor_bytes(size, 3, dtype))


CASES = [_case("DKD", (64, 100)), _case("LSKD + CE", (64, 100)), *(_case(name, (256, 1000)) for name in LOSSES)]
LARGE_CASES = [
    _case("DKD", (8192, 1000)),
    _case("DKD", (8192, 1000), torch.bfloat16),
    _case("LSKD + CE", (8192, 1000), torch.bfloat16),
]
