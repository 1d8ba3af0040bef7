"""DIST: the correlation of predictions with the teacher's, over the classes and over the batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, in_places, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype
from sftn_fast.ops._library import register_fake
from sftn_fast.ops._nodes import Loss
from sftn_fast.ops.terms import DISTTerms


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> DISTTerms:
    """Compute DIST (Huang et al., NeurIPS 2022), as its authors do.

    With ``p = softmax(logits / T)`` of each network and ``r`` Pearson's correlation, ``inter`` is
    ``T^2 (1 - mean over images of r(p_s[n], p_t[n]))``: over the classes of an image. ``intra`` is
    ``T^2 (1 - mean over classes of r(p_s[:, c], p_t[:, c]))``: over the images of the batch.
    ``r = <a, b> / (|a| |b| + 1e-8)`` with ``a`` and ``b`` less their means.

    A constant row or column has ``r = 0``: that of a batch of one, of a single class, or of equal logits. An empty
    batch gives 0. ``intra`` relates images, so on several GPUs it needs the logits of the whole batch.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``. Receives a gradient too if it requires one.
        temperature: ``T``, from 1e-12 to 1e12.
        inter_weight: weight of the correlation over classes.
        intra_weight: weight of the correlation over images.

    Returns:
        ``DISTTerms(total, inter, intra)``; see :class:`DISTTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_temperature(temperature)
        check.check_finite("inter_weight", inter_weight)
        check.check_finite("intra_weight", intra_weight)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.dist_loss(
            student_logits, teacher_logits, temperature, inter_weight=inter_weight, intra_weight=intra_weight
        )
    options = Options(float(temperature), float(inter_weight), float(intra_weight))
    student_logits, teacher_logits = same_dtype((student_logits, teacher_logits))
    total, parts = _fused(ops, student_logits, teacher_logits, options)
    return DISTTerms(total, *parts.unbind())


class Options(NamedTuple):
    """Scalars of the raw ops, in the schemas' order."""

    temperature: float
    inter_weight: float
    intra_weight: float


_LOSS = Loss("dist_forward", "dist_backward", ("student", "teacher"), num_returned=2)


def _fused(ops: Any, student: Tensor, teacher: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return ``(total, parts)``. Only ``total`` is differentiable."""
    if needs_function((student, teacher)):
        results = _LOSS(ops, student, teacher, *options)
        return results or _DISTLoss.apply(ops, options, *savable(student, teacher))
    total, parts, _, _ = ops.dist_forward(student, teacher, *options)
    return total, parts


class _DISTLoss(torch.autograd.Function):
    """DIST's autograd. The forward op leaves a few numbers for each row and column, the backward op computes again."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, rows, columns = ops.dist_forward(student, teacher, *options)
        ctx.save_for_backward(student, teacher, rows, columns)
        ctx.ops, ctx.options = ops, options
        ctx.mark_non_differentiable(parts)
        ctx.set_materialize_grads(False)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 4
        return None, None, *first_derivatives(_backward, ctx, grad_total)


def _backward(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student and teacher, None where none is wanted."""
    _, _, *wanted = ctx.needs_input_grad
    return in_places(ctx.ops.dist_backward(grad_total, *saved, *ctx.options, *wanted), wanted)


@register_fake("dist_forward")
def _(student: Tensor, teacher: Tensor, *options: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, c = student.shape
    dtype = accumulator(student)
    sizes: tuple[tuple[int, ...], ...] = ((), (2,), (n, 12), (6, c))
    total, parts, rows, columns = (student.new_empty(size, dtype=dtype) for size in sizes)
    return total, parts, rows, columns


@register_fake("dist_backward")
def _(grad_total: Tensor, student: Tensor, *rest: Any) -> list[Tensor]:
    return [student.new_empty(student.shape) for wanted in rest[-2:] if wanted]
