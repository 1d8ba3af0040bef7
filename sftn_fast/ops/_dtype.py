"""The dtype that the losses compute in, and the promotion of inputs of several dtypes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from sftn_fast.ops._autograd import savable


def accumulator(*inputs: Tensor) -> torch.dtype:
    """Return the dtype of losses and sums: float64 if one of the inputs is float64, else float32."""
    for x in inputs:
        if x.dtype is torch.float64:
            return torch.float64
    return torch.float32


def widened(*inputs: Tensor) -> list[Tensor]:
    """Convert inputs to their :func:`accumulator` dtype, each once so that its gradient is rounded once."""
    dtype = accumulator(*inputs)
    return list(savable(*(x.to(dtype) for x in inputs)))


def widened_beside(inputs: tuple[Tensor, ...], *others: Tensor | None) -> tuple[Tensor, ...]:
    """Convert ``inputs`` to float64 if one of ``inputs`` or ``others`` is float64, else return them unchanged."""
    for x in (*inputs, *others):
        if x is not None and x.dtype is torch.float64:
            return tuple(x.double() for x in inputs)
    return inputs


def without_autocast(device_type: str) -> AbstractContextManager:
    """Disable autocast, which would run matrix products in half precision. Some devices, such as meta, have none."""
    return torch.autocast(device_type, enabled=False) if is_autocast_available(device_type) else nullcontext()


def same_dtype(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Convert inputs to the dtype they promote to, or return them unchanged if they share one."""
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
