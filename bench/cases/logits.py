"""The losses on logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case, Step, step, suffix, tensor_bytes
from bench.eager import liger
from bench.eager import logits as eager
from sftn_fast import ops
from sftn_fast.ops import reference


def _logits(n: int, c: int, device: str, dtype: torch.dtype, *, grad: bool) -> Tensor:
    return (3 * torch.randn(n, c, device=device)).to(dtype).requires_grad_(grad)


def kd_ce(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    student, teacher = (_logits(n, c, device, dtype, grad=grad) for grad in (True, False))
    target = torch.randint(c, (n,), device=device)
    authors = eager.KDWithCrossEntropy()
    losses = {
        "eager": lambda: authors(student, teacher, target),
        "reference": lambda: reference.kd_ce_loss(student, teacher, target),
        "ours": lambda: ops.kd_ce_loss(student, teacher, target),
    }
    if device == "cuda" and liger.installed():
        losses |= liger.kd_with_cross_entropy(student, teacher, target)
    return {name: step([student], loss) for name, loss in losses.items()}


def sftn(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32, num_branches: int = 3) -> dict[str, Step]:
    teacher, *branches = (_logits(n, c, device, dtype, grad=True) for _ in range(1 + num_branches))
    target = torch.randint(c, (n,), device=device)
    authors = eager.SFTN()
    losses = {
        "eager": lambda: authors(teacher, branches, target),
        "reference": lambda: reference.sftn_loss(teacher, branches, target),
        "ours": lambda: ops.sftn_loss(teacher, branches, target),
    }
    return {name: step([teacher, *branches], loss) for name, loss in losses.items()}


def _case(
    name: str,
    build: Callable[..., dict[str, Step]],
    size: tuple[int, int],
    tensors: int,
    gradients: int,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Build a case that reads each tensor forward and backward, and writes each gradient."""
    bytes_moved = tensor_bytes(size, 2 * tensors + gradients, dtype)
    return Case(f"{name} {size}{suffix(dtype)}", partial(build, *size, dtype=dtype), bytes_moved)


def _kd_ce_case(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Case:
    return _case("KD + CE", kd_ce, size, 2, 1, dtype)


def _sftn_case(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Case:
    return _case("SFTN, 3 branches", sftn, size, 4, 4, dtype)


CASES = [
    *map(_kd_ce_case, [(64, 100), (256, 1000), (1024, 1000)]),
    *map(_sftn_case, [(64, 100), (256, 1000)]),
]
LARGE_CASES = [
    _kd_ce_case((8192, 1000)),
    _kd_ce_case((8192, 1000), torch.bfloat16),
    _sftn_case((8192, 1000), torch.bfloat16),
    _kd_ce_case((64, 100), torch.bfloat16),
]
