"""The losses between feature maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Step, step
from bench.eager import features as eager
from sftn_fast import ops
from sftn_fast.ops import reference

Shape = tuple[int, int, int, int]

# ---- element by element: hint, AB, OH, VID ----


def _pair(shape: Shape, device: str, *, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    student, teacher = (torch.randn(shape, device=device).to(memory_format=memory_format) for _ in range(2))
    return student.requires_grad_(), teacher


def _hint(shape: Shape, device: str) -> dict[str, Step]:
    student, teacher = _pair(shape, device)
    authors = eager.HintLoss()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.hint_loss(student, teacher),
        "ours": lambda: ops.hint_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _ab(shape: Shape, device: str) -> dict[str, Step]:
    student, teacher = _pair(shape, device)
    authors = eager.ABLoss()
    losses = {
        "eager": lambda: authors(student, teacher),
        "reference": lambda: reference.ab_loss(student, teacher),
        "ours": lambda: ops.ab_loss(student, teacher),
    }
    return {name: step([student], loss) for name, loss in losses.items()}


def _oh(shape: Shape, device: str, *, channels_last: bool = False) -> dict[str, Step]:
    student, teacher = _pair(shape, device, channels_last=channels_last)
    margin = -torch.rand(shape[1], device=device)
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


POINTWISE_CASES = [
    Case("hint (64, 256, 8, 8)", partial(_hint, (64, 256, 8, 8))),
    Case("AB (64, 256, 8, 8)", partial(_ab, (64, 256, 8, 8))),
    Case("OH (64, 256, 8, 8)", partial(_oh, (64, 256, 8, 8))),
    Case("OH (64, 256, 8, 8) channels last", partial(_oh, (64, 256, 8, 8), channels_last=True)),
    Case("OH (64, 64, 32, 32)", partial(_oh, (64, 64, 32, 32))),
    Case("VID (64, 256, 8, 8)", partial(_vid, (64, 256, 8, 8))),
    Case("VID (64, 256, 8, 8) channels last", partial(_vid, (64, 256, 8, 8), channels_last=True)),
    Case("VID (64, 64, 32, 32)", partial(_vid, (64, 64, 32, 32))),
]


# ---- attention and factors ----


def _attention(
    authors: type[nn.Module],
    loss: Callable[[object], Callable[[Tensor, Tensor], Tensor]],
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
    device: str,
    *,
    channels_last: bool = False,
) -> dict[str, Step]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    maps = (torch.randn(shape, device=device).relu() for shape in (student_shape, teacher_shape))
    student, teacher = (x.to(memory_format=layout) for x in maps)
    student.requires_grad_()
    losses = {"eager": authors(), "reference": loss(reference), "ours": loss(ops)}
    return {name: step([student], partial(run, student, teacher)) for name, run in losses.items()}


_at = partial(_attention, eager.Attention, lambda module: module.at_loss)
_ft = partial(_attention, eager.FactorTransfer, lambda module: module.ft_loss)
_paper_ft = partial(_attention, eager.PaperFactorTransfer, lambda module: partial(module.ft_loss, variant="paper"))

_SMALL_MAP, _LARGE_MAP = (64, 256, 8, 8), (64, 64, 32, 32)

ATTENTION = [
    Case("AT (64, 256, 8, 8)", partial(_at, _SMALL_MAP, _SMALL_MAP)),
    Case("AT (64, 64, 32, 32)", partial(_at, _LARGE_MAP, _LARGE_MAP)),
    Case("AT (64, 64, 32, 32), channels last", partial(_at, _LARGE_MAP, _LARGE_MAP, channels_last=True)),
    Case("AT (64, 64, 32, 32), teacher (64, 256, 8, 8)", partial(_at, _LARGE_MAP, _SMALL_MAP)),
    Case("FT (64, 256, 8, 8)", partial(_ft, _SMALL_MAP, _SMALL_MAP)),
    Case("FT of the paper (64, 256, 8, 8)", partial(_paper_ft, _SMALL_MAP, _SMALL_MAP)),
]


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


CASES = [*POINTWISE_CASES, *ATTENTION, *ADAPTATION_CASES]
