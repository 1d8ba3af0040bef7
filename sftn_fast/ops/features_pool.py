"""Adaptive average pooling for maps of different sizes; see ``csrc/features_pool.h`` for why it is not PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._dtype import accumulator
from sftn_fast.ops._layout import same_layout
from sftn_fast.ops._library import register_fake


def poolable(first: Tensor, second: Tensor) -> bool:
    """Return whether one of two maps ``[N, C, H, W]`` can be pooled to the other's size.

    It can if it is not smaller in height or in width.
    """
    return (first.shape[2] - second.shape[2]) * (first.shape[3] - second.shape[3]) >= 0


def pooled_alike(ops: Any, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the map ``[N, C, H, W]`` with more pixels down to the height and width of the other.

    ``ops`` is the namespace of the kernels. A pooled map becomes float32, or stays float64.
    """
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    if student.shape[2] * student.shape[3] > teacher.shape[2] * teacher.shape[3]:
        return _pooled(ops, student, teacher.shape[2], teacher.shape[3]), teacher
    return student, _pooled(ops, teacher, student.shape[2], student.shape[3])


def _pooled(ops: Any, features: Tensor, height: int, width: int) -> Tensor:
    (features,) = same_layout(features)
    if needs_function((features,)):
        return _Pool.apply(ops, height, width, *savable(features))
    return ops.features_pool_forward(features, height, width)


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Any, height: int, width: int, features: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(features)
        ctx.ops = ops
        ctx.set_materialize_grads(False)
        return ops.features_pool_forward(features, height, width)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * 4
        return None, None, None, *first_derivatives(_backward, ctx, grad)


def _backward(ctx: Any, grad: Tensor, saved: Saved) -> list[Tensor]:
    features, grad = same_layout(*saved, grad)
    return [ctx.ops.features_pool_backward(grad, features)]


@register_fake("features_pool_forward")
def _(features: Tensor, height: int, width: int) -> Tensor:
    dtype = accumulator(features)
    n, c = features.shape[:2]
    strides = (c * height * width, height * width, width, 1)
    if not features.is_contiguous():
        strides = (c * height * width, 1, width * c, c)
    return features.new_empty_strided((n, c, height, width), strides, dtype=dtype)


@register_fake("features_pool_backward")
def _(grad: Tensor, features: Tensor) -> Tensor:
    return torch.empty_like(features)
