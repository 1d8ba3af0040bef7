"""The divergences as autograd functions around the raw ops of ``csrc/logits_divergence.h``, which has their formulas.

The CPU's op leaves the loss and the student's gradient, which the backward pass multiplies by the gradient of the loss.
A GPU has an op in each direction, because N x C numbers that are written and read again would cost more than the
arithmetic.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, is_readable, needs_function, savable, scaled
from sftn_fast.ops._dtype import accumulator, same_dtype
from sftn_fast.ops._library import register_fake
from sftn_fast.ops._nodes import Loss

NUMBERS = 16
"""Of each row, which a GPU's forward op leaves for its backward op: ``kDivergenceNumbers``."""


class Divergence(IntEnum):
    """What is summed over the classes, as in the C++ enumeration."""

    KL, CROSS_ENTROPY, AB, JSD, TVD, REVERSE_KL, SKEW_KL, SKEW_REVERSE_KL = range(8)


class Kept(IntEnum):
    """The classes of the divergence: all, all but the target's, or those of lower teacher logits than the target's."""

    ALL, OTHERS, BELOW = range(3)


class Label(IntEnum):
    """The term of the target's class against all others together."""

    NONE, KL, TOP_KL, CROSS_ENTROPY, HARD_CROSS_ENTROPY = range(5)


class Options(NamedTuple):
    """Scalars of the raw ops, in the schemas' order. The CPU's op has no ``ignore_index``."""

    divergence: int = Divergence.KL
    kept: int = Kept.ALL
    label: int = Label.NONE
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    label_temperature: float = 1.0
    alpha: float = 1.0
    beta: float = 1.0
    weight: float = 1.0
    scale: float = 1.0
    label_weight: float = 0.0
    label_scale: float = 1.0
    standardize: bool = False
    weighted: bool = False
    rows: bool = False
    ignore_index: int = -100


def takes_cross_entropy(ops: Any, target: Tensor, ignore_index: int) -> bool:
    """Return whether the kernels compute the cross-entropy of classes too: on the CPU only if no row is ignored."""
    if target.is_floating_point():
        return False
    if not _is_one_op(ops, target):
        return True
    return not torch.compiler.is_compiling() and is_readable(target) and not bool((target == ignore_index).any())


def _is_one_op(ops: Any, x: Tensor) -> bool:
    return x.is_cpu and ops is torch.ops.sftn_fast


def fused_divergence(
    ops: Any, student: Tensor, teacher: Tensor, target: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the parts ``[2]``: of the label and of the divergence, without their weights."""
    student, teacher = same_dtype((student, teacher))
    wants_grad = needs_function((student, teacher))
    if _is_one_op(ops, student):
        if wants_grad:
            return _in_one_op(ops, options, target, student, teacher)
        total, parts, _ = _call(ops.logits_divergence, student, teacher, target, options, *options[:-1], False)
        return total, parts
    if wants_grad:
        total, parts = _in_two_ops(ops, options, target, student, teacher)
    else:
        total, parts, _ = _call(ops.logits_divergence_forward, student, teacher, target, options, *options)
    return total, parts[:2]


def _call(op: Any, student: Tensor, teacher: Tensor, target: Tensor | None, options: Options, *rest: Any) -> Any:
    try:
        return op(student, teacher, target, *rest)
    except RuntimeError:
        if target is not None:
            ignored = options.ignore_index if options.label == Label.HARD_CROSS_ENTROPY else None
            check.check_classes(target, student.shape[1], ignored)
        raise


_IN_ONE_OP = Loss("logits_divergence", None, ("student",))
_IN_TWO_OPS = Loss("logits_divergence_forward", "logits_divergence_backward", ("student",), num_returned=2)


def _in_one_op(
    ops: Any, options: Options, target: Tensor | None, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    if not options.rows:  # a node multiplies the gradients by one number
        results = _call(partial(_IN_ONE_OP, ops), student, teacher, target, options, *options[:-1])
        if results is not None:
            return results
    return _InOneOp.apply(ops, options, *savable(target, student, teacher))


def _in_two_ops(
    ops: Any, options: Options, target: Tensor | None, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor]:
    results = _call(partial(_IN_TWO_OPS, ops), student, teacher, target, options, *options)
    return results or _InTwoOps.apply(ops, options, *savable(target, student, teacher))


class _InOneOp(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, grad = _call(ops.logits_divergence, student, teacher, target, options, *options[:-1], True)
        ctx.save_for_backward(student, grad)
        ctx.rows = options.rows
        ctx.mark_non_differentiable(parts)
        ctx.set_materialize_grads(False)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 5
        return None, None, None, *first_derivatives(_multiply, ctx, grad_total), None


def _multiply(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradient that the forward pass left, times the one that the loss was given."""
    student, grad = saved
    if ctx.rows:
        grad = grad * grad_total[:, None]
    elif torch.compiler.is_compiling():
        grad = grad * grad_total
    else:
        (grad,) = scaled((grad,), grad_total)
    return [grad if grad.dtype is student.dtype else grad.to(student.dtype)]


class _InTwoOps(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, numbers = _call(ops.logits_divergence_forward, student, teacher, target, options, *options)
        ctx.save_for_backward(student, teacher, target, parts, numbers)
        ctx.ops, ctx.options = ops, options
        ctx.mark_non_differentiable(parts)
        ctx.set_materialize_grads(False)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 5
        return None, None, None, *first_derivatives(_backward, ctx, grad_total), None


def _backward(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    return [ctx.ops.logits_divergence_backward(grad_total, *saved, *ctx.options)]


@register_fake("logits_divergence")
def _(student: Tensor, teacher: Tensor, target: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *scalars, wants_grad = rest
    total, parts = _results_like(student, Options(*scalars), 2)
    n, c = student.shape
    return total, parts, student.new_empty((n if wants_grad else 0, c), dtype=parts.dtype)


@register_fake("logits_divergence_forward")
def _(student: Tensor, teacher: Tensor, target: Tensor | None, *scalars: Any) -> tuple[Tensor, Tensor, Tensor]:
    total, parts = _results_like(student, Options(*scalars), 3)
    return total, parts, student.new_empty((student.shape[0], NUMBERS), dtype=parts.dtype)


@register_fake("logits_divergence_backward")
def _(grad_total: Tensor, student: Tensor, *rest: Any) -> Tensor:
    return student.new_empty(student.shape)


def _results_like(student: Tensor, options: Options, num_parts: int) -> tuple[Tensor, Tensor]:
    dtype = accumulator(student)
    total = student.new_empty((student.shape[0],) if options.rows else (), dtype=dtype)
    return total, student.new_empty(num_parts, dtype=dtype)
