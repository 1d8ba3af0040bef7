"""Which dtype the losses compute in, and how inputs of several dtypes come together."""

from __future__ import annotations

import torch
from torch import Tensor

from sftn_fast.ops._autograd import savable


def accumulator(*inputs: Tensor) -> torch.dtype:
    """What losses and sums are computed in: float64 if one of the inputs is, else float32."""
    for x in inputs:
        if x.dtype is torch.float64:
            return torch.float64
    return torch.float32


def widened(*inputs: Tensor) -> list[Tensor]:
    """All in their :func:`accumulator`, to be saved: once for each input, so that its gradient is rounded once."""
    dtype = accumulator(*inputs)
    return list(savable(*(x.to(dtype) for x in inputs)))


def widened_beside(inputs: tuple[Tensor, ...], *others: Tensor | None) -> tuple[Tensor, ...]:
    """In float64 where one of ``inputs`` or ``others`` is, else as they are."""
    for x in (*inputs, *others):
        if x is not None and x.dtype is torch.float64:
            return tuple(x.double() for x in inputs)
    return inputs


def same_dtype(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All in the dtype that theirs promote to; as they are where they share one."""
    dtype = inputs[0].dtype
    for x in inputs:
        if x.dtype is not dtype:
            return _promoted(inputs)
    return inputs


def _promoted(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    dtype = inputs[0].dtype
    for x in inputs:
        dtype = torch.promote_types(dtype, x.dtype)
    return tuple(x.to(dtype) for x in inputs)
