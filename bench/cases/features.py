"""The losses on feature maps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bench.cases.case import Case, Step, step
from bench.eager import features as eager
from sftn_fast import ops
from sftn_fast.ops import reference

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

CASES = [*ATTENTION]
