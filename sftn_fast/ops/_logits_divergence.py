"""The divergences as one autograd function around the raw op of ``csrc/logits_divergence.h``, which has their formulas.

The op leaves the loss and the student's gradient, which the backward pass multiplies by the gradient of the loss.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, is_readable, needs_function, savable, scaled
from sftn_fast.ops._backend import kernels, without_kernel_of
from sftn_fast.ops._dtype import accumulator, same_dtype
from sftn_fast.ops._library import register_fake


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
    """Scalars of the raw op, in the schema's order."""

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


def divergence_kernels(logits: Tensor) -> Any | None:
    """Return the namespace of the raw ops, or None for the reference. So far the CPU alone has a kernel.

    Raises:
        RuntimeError: the backend is ``"fused"``, and there is no kernel.
    """
    ops = kernels(logits.device.type)
    if ops is not None and logits.is_cuda:
        without_kernel_of("divergences of logits", "cuda")
    return ops if ops is torch.ops.sftn_fast and logits.is_cpu else None


def takes_cross_entropy(target: Tensor, ignore_index: int) -> bool:
    """Return whether the op may compute the cross-entropy too: on the CPU, of classes, if no row is ignored."""
    if torch.compiler.is_compiling() or not target.is_cpu or target.is_floating_point():
        return False
    return is_readable(target) and not bool((target == ignore_index).any())


def fused_divergence(
    ops: Any, student: Tensor, teacher: Tensor, target: Tensor | None, options: Options
) -> tuple[Tensor, Tensor]:
    """Return the loss, and the parts ``[2]``: of the label and of the divergence, without their weights."""
    student, teacher = same_dtype((student, teacher))
    if needs_function((student, teacher)):
        return _DivergenceLoss.apply(ops, options, *savable(target, student, teacher))
    total, parts, _ = _call(ops, student, teacher, target, options, False)
    return total, parts


def _call(
    ops: Any, student: Tensor, teacher: Tensor, target: Tensor | None, options: Options, wants_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return ops.logits_divergence(student, teacher, target, *options, wants_grad)
    except RuntimeError:
        if target is not None:
            check.check_classes(target, student.shape[1])
        raise


class _DivergenceLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, grad = _call(ops, student, teacher, target, options, True)
        ctx.save_for_backward(student, grad)
        ctx.rows = options.rows
        ctx.mark_non_differentiable(parts)
        ctx.set_materialize_grads(False)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 5
        return None, None, None, *first_derivatives(_backward, ctx, grad_total), None


def _backward(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradient that the forward pass left, times the one that the loss was given."""
    student, grad = saved
    if ctx.rows:
        grad = grad * grad_total[:, None]
    elif torch.compiler.is_compiling() or not grad.is_cpu:
        grad = grad * grad_total
    else:
        (grad,) = scaled((grad,), grad_total)
    return [grad.to(student.dtype)]


@register_fake("logits_divergence")
def _(student: Tensor, teacher: Tensor, target: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *scalars, wants_grad = rest
    dtype = accumulator(student)
    n, c = student.shape
    total = student.new_empty((n,) if Options(*scalars).rows else (), dtype=dtype)
    return total, student.new_empty(2, dtype=dtype), student.new_empty((n if wants_grad else 0, c), dtype=dtype)
