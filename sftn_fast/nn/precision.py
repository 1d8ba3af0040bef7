"""Float32 arithmetic, or float64, for losses written in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.amp import is_autocast_available

from sftn_fast.ops._autograd import savable
from sftn_fast.ops._dtype import accumulator, without_autocast

P = ParamSpec("P")
R = TypeVar("R")


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function to compute in float32, or in float64 if an argument is float64, even under autocast.

    Floating-point tensors among the positional arguments, also inside lists and tuples, are each converted once, so
    that a gradient is rounded once. Tensors of ``torch.inference_mode()`` are copied, as autograd does not save them.
    """

    @wraps(function)
    def in_wide(*arguments: P.args, **options: P.kwargs) -> R:
        given = list(_floating(arguments))
        dtype = accumulator(*given)
        device = given[0].device.type if given else "cpu"
        if not torch.compiler.is_compiling() and not (
            is_autocast_available(device) and torch.is_autocast_enabled(device)
        ):
            return function(*_converted(arguments, dtype), **options)
        with without_autocast(device):  # compiled code may run under autocast later
            return function(*_converted(arguments, dtype), **options)

    return in_wide


cross_entropy = in_float32(F.cross_entropy)
"""``F.cross_entropy`` in float32, or in float64 for float64 logits."""

average_pooled = in_float32(F.adaptive_avg_pool2d)
"""``F.adaptive_avg_pool2d`` in float32: averages in half precision would be rounded."""


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _floating(item)


def _converted(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        (value,) = savable(value.to(dtype) if value.is_floating_point() else value)
    elif isinstance(value, (list, tuple)):
        return type(value)([_converted(item, dtype) for item in value])
    return value
