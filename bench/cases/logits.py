"""The losses on logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.case import Case, Step, step, suffix, tensor_bytes
from bench.eager import liger
from bench.eager import logits as eager
from sftn_fast import ops
from sftn_fast.ops import reference


def _logits(shape: Sequence[int], device: str, dtype: torch.dtype, *, grad: bool) -> Tensor:
    return (3 * torch.randn(*shape, device=device)).to(dtype).requires_grad_(grad)


def kd_ce(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    return _kd_ce((n, c), torch.randint(c, (n,), device=device), dtype)


def kd_ce_of_mixed(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    """Build the loss with probabilities of two classes a row."""
    one_hot = F.one_hot(torch.randint(c, (n,), device=device), c).float()
    return _kd_ce((n, c), 0.7 * one_hot + 0.3 * one_hot.flip(0), dtype)


def kd_ce_of_pixels(
    n: int, c: int, height: int, width: int, device: str, *, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    return _kd_ce((n, c, height, width), torch.randint(c, (n, height, width), device=device), dtype)


def _kd_ce(shape: Sequence[int], target: Tensor, dtype: torch.dtype) -> dict[str, Step]:
    device = target.device.type
    student, teacher = (_logits(shape, device, dtype, grad=grad) for grad in (True, False))
    authors = eager.KDWithCrossEntropy()
    losses = {
        "eager": lambda: authors(student, teacher, target),
        "reference": lambda: reference.kd_ce_loss(student, teacher, target),
        "ours": lambda: ops.kd_ce_loss(student, teacher, target),
    }
    if device == "cuda" and liger.installed() and target.dim() == 1:
        losses |= liger.kd_with_cross_entropy(student, teacher, target)
    return {name: step([student], loss) for name, loss in losses.items()}


def sftn(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32, num_branches: int = 3) -> dict[str, Step]:
    teacher, *branches = (_logits((n, c), device, dtype, grad=True) for _ in range(1 + num_branches))
    target = torch.randint(c, (n,), device=device)
    authors = eager.SFTN()
    losses = {
        "eager": lambda: authors(teacher, branches, target),
        "reference": lambda: reference.sftn_loss(teacher, branches, target),
        "ours": lambda: ops.sftn_loss(teacher, branches, target),
    }
    return {name: step([teacher, *branches], loss) for name, loss in losses.items()}


def dist(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    student, teacher = (_logits((n, c), device, dtype, grad=grad) for grad in (True, False))
    authors = eager.DIST()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.dist_loss(student, teacher),
        "ours": lambda: ops.dist_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def wkd(n: int, c: int, device: str, *, dtype: torch.dtype = torch.float32) -> dict[str, Step]:
    student, teacher = (_logits((n, c), device, dtype, grad=grad) for grad in (True, False))
    target = torch.randint(c, (n,), device=device)
    classes = torch.nn.functional.normalize(torch.randn(c, 64, device=device))
    cost = 1 - torch.exp(classes @ classes.t() - 1)
    authors = eager.WKD()
    losses = {
        "eager": lambda: authors(student.float(), teacher.float(), target, cost),
        "reference": lambda: reference.wkd_loss(student, teacher, target, cost),
        "ours": lambda: ops.wkd_loss(student, teacher, target, cost),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _case(
    name: str,
    build: Callable[..., dict[str, Step]],
    size: tuple[int, ...],
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


def _dist_case(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> Case:
    return _case("DIST", dist, size, 2, 1, dtype)


def _wkd_case(size: tuple[int, int]) -> Case:
    return Case(f"WKD {size}", partial(wkd, *size))


CASES = [
    *map(_kd_ce_case, [(64, 100), (256, 1000), (1024, 1000)]),
    *map(_sftn_case, [(64, 100), (256, 1000)]),
    _case("KD + CE of mixed images", kd_ce_of_mixed, (256, 1000), 3, 1),
    _case("KD + CE of pixels", kd_ce_of_pixels, (8, 21, 64, 64), 2, 1),
    *map(_dist_case, [(64, 100), (256, 1000)]),
    *map(_wkd_case, [(64, 100), (64, 1000)]),
]
LARGE_CASES = [
    _kd_ce_case((8192, 1000)),
    _kd_ce_case((8192, 1000), torch.bfloat16),
    _sftn_case((8192, 1000), torch.bfloat16),
    _kd_ce_case((64, 100), torch.bfloat16),
    _dist_case((8192, 1000)),
    _dist_case((8192, 1000), torch.bfloat16),
]
