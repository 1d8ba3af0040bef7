"""The losses between feature maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Step, step, suffix, tensor_bytes
from bench.eager import features as eager
from sftn_fast import ops
from sftn_fast.ops import reference

Shape = tuple[int, int, int, int]
FLOAT = torch.float32

# ---- elementwise: hint, AB, OH, VID ----


def _pair(
    shape: Shape, device: str, *, channels_last: bool = False, dtype: torch.dtype = FLOAT
) -> tuple[Tensor, Tensor]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = (torch.randn(shape, device=device).to(dtype, memory_format=memory_format) for _ in range(2))
    return student.requires_grad_(), teacher


def _hint(shape: Shape, device: str, *, dtype: torch.dtype = FLOAT) -> dict[str, Step]:
    student, teacher = _pair(shape, device, dtype=dtype)
    authors = eager.HintLoss()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.hint_loss(student, teacher),
        "ours": lambda: ops.hint_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _ab(shape: Shape, device: str, *, dtype: torch.dtype = FLOAT) -> dict[str, Step]:
    student, teacher = _pair(shape, device, dtype=dtype)
    authors = eager.ABLoss()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.ab_loss(student, teacher),
        "ours": lambda: ops.ab_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _oh(shape: Shape, device: str, *, channels_last: bool = False, dtype: torch.dtype = FLOAT) -> dict[str, Step]:
    student, teacher = _pair(shape, device, channels_last=channels_last, dtype=dtype)
    margin = -torch.rand(shape[1], device=device).to(dtype)
    authors = eager.OHLoss()
    losses = {
        "eager": lambda: authors(student, teacher, margin),
        "reference": lambda: reference.oh_loss(student, teacher, margin),
        "ours": lambda: ops.oh_loss(student, teacher, margin),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _vid(shape: Shape, device: str, *, channels_last: bool = False) -> dict[str, Step]:
    mean, teacher = _pair(shape, device, channels_last=channels_last)
    authors = eager.VIDLoss(shape[1]).to(device)
    log_scale = authors.log_scale
    losses = {
        "eager": lambda: authors(mean, teacher),
        "reference": lambda: reference.vid_loss(mean, log_scale, teacher),
        "ours": lambda: ops.vid_loss(mean, log_scale, teacher),
    }
    return {name: step([mean, log_scale], loss) for name, loss in losses.items()}


def _pointwise(name: str, build: Callable[..., dict[str, Step]], shape: Shape, **options: Any) -> Case:
    """Build a case that reads both maps forward and backward and writes the gradient."""
    bytes_moved = tensor_bytes(shape, 5, options.get("dtype", FLOAT))
    return Case(f"{name} {shape}{_ending(**options)}", partial(build, shape, **options), bytes_moved)


def _ending(*, channels_last: bool = False, dtype: torch.dtype = FLOAT) -> str:
    """Return the end of a case's name."""
    return f"{' channels last' if channels_last else ''}{suffix(dtype)}"


POINTWISE_CASES = [
    _pointwise("hint", _hint, (64, 256, 8, 8)),
    _pointwise("AB", _ab, (64, 256, 8, 8)),
    _pointwise("OH", _oh, (64, 256, 8, 8)),
    _pointwise("OH", _oh, (64, 256, 8, 8), channels_last=True),
    _pointwise("OH", _oh, (64, 64, 32, 32)),
    _pointwise("VID", _vid, (64, 256, 8, 8)),
    _pointwise("VID", _vid, (64, 256, 8, 8), channels_last=True),
    _pointwise("VID", _vid, (64, 64, 32, 32)),
]


# ---- attention and factors ----


def _attention(
    authors: type[nn.Module],
    loss: Callable[[object], Callable[[Tensor, Tensor], Tensor]],
    student_shape: Shape,
    teacher_shape: Shape,
    device: str,
    *,
    channels_last: bool = False,
    dtype: torch.dtype = FLOAT,
) -> dict[str, Step]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = (torch.randn(shape, device=device).relu() for shape in (student_shape, teacher_shape))
    student, teacher = (x.to(dtype, memory_format=layout) for x in maps)
    student.requires_grad_()
    losses = {"eager": authors(), "reference": loss(reference), "ours": loss(ops)}
    return {name: step([student], partial(run, student, teacher)) for name, run in losses.items()}


_at = partial(_attention, eager.Attention, lambda module: module.at_loss)
_ft = partial(_attention, eager.FactorTransfer, lambda module: module.ft_loss)
_paper_ft = partial(_attention, eager.PaperFactorTransfer, lambda module: partial(module.ft_loss, variant="paper"))

_SMALL_MAP, _LARGE_MAP = (64, 256, 8, 8), (64, 64, 32, 32)


def _attentive(
    name: str, build: Callable[..., dict[str, Step]], student: Shape, teacher: Shape, **options: Any
) -> Case:
    """Build a case that reads the student's map twice and the teacher's once, and writes the student's gradient."""
    dtype = options.get("dtype", FLOAT)
    bytes_moved = tensor_bytes(student, 3, dtype) + tensor_bytes(teacher, 1, dtype)
    return Case(name, partial(build, student, teacher, **options), bytes_moved)


ATTENTION_CASES = [
    _attentive("AT (64, 256, 8, 8)", _at, _SMALL_MAP, _SMALL_MAP),
    _attentive("AT (64, 64, 32, 32)", _at, _LARGE_MAP, _LARGE_MAP),
    _attentive("AT (64, 64, 32, 32) channels last", _at, _LARGE_MAP, _LARGE_MAP, channels_last=True),
    _attentive("AT (64, 64, 32, 32), teacher (64, 256, 8, 8)", _at, _LARGE_MAP, _SMALL_MAP),
    _attentive("FT (64, 256, 8, 8)", _ft, _SMALL_MAP, _SMALL_MAP),
    _attentive("FT of the paper (64, 256, 8, 8)", _paper_ft, _SMALL_MAP, _SMALL_MAP),
]


# ---- after a BatchNorm ----


def _adapted_hint(shape: Shape, device: str, *, channels_last: bool = False) -> dict[str, Step]:
    features, teacher = _pair(shape, device, channels_last=channels_last)
    authors = eager.HintBehindBatchNorm(shape[1]).to(device)
    bn = torch.nn.BatchNorm2d(shape[1], device=device)
    arguments = features, teacher, bn.weight, bn.bias, bn.running_mean, bn.running_var
    leaves = [features, bn.weight, bn.bias]
    return {
        "eager": step([features, *authors.parameters()], lambda: authors(features, teacher)),
        "reference": step(leaves, lambda: reference.adapted_hint_loss(*arguments)),
        "ours": step(leaves, lambda: ops.adapted_hint_loss(*arguments)),
    }


def _behind_norm(shape: Shape, **options: Any) -> Case:
    """Build a case that reads the map three times and the teacher's twice, and writes the gradient."""
    name = f"BatchNorm + ReLU + MSE {shape}{_ending(**options)}"
    return Case(name, partial(_adapted_hint, shape, **options), tensor_bytes(shape, 6))


ADAPTATION_CASES = [
    _behind_norm((64, 256, 8, 8)),
    _behind_norm((64, 256, 8, 8), channels_last=True),
    _behind_norm((64, 64, 32, 32)),
]


CASES = [*POINTWISE_CASES, *ATTENTION_CASES, *ADAPTATION_CASES]

_BEYOND_L2 = (256, 256, 56, 56)
LARGE_CASES = [
    _pointwise("hint", _hint, _BEYOND_L2),
    _pointwise("hint", _hint, _BEYOND_L2, dtype=torch.bfloat16),
    _pointwise("OH", _oh, _BEYOND_L2, dtype=torch.bfloat16, channels_last=True),
    _attentive(f"AT {_BEYOND_L2} bfloat16", _at, _BEYOND_L2, _BEYOND_L2, dtype=torch.bfloat16),
    _behind_norm(_BEYOND_L2),
]
