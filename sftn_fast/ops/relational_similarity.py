"""Losses on the similarities between the samples of a batch: SP and PKT.

Both depend on the features only through the Gram matrix ``F F^T``. On a GPU it is a matrix product, on the CPU an op
that computes one of its equal halves. Another op, ``csrc/relational_similarity.h``, does the rest on ``[B, B]`` and
also returns the loss's gradient with respect to the Gram matrix. A matrix product then gives the gradient of the
features. A sum over features does not depend on their order, so each map is read in its memory order. PKT on the CPU is
one op that does all of it.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import AtOnce, Saved, computes_at_once, first_derivatives, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator
from sftn_fast.ops._library import register_fake
from sftn_fast.ops._nodes import Loss


def sp_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute similarity-preserving distillation (Tung and Mori, ICCV 2019), as RepDistiller does.

    ``G = F F^T`` is the Gram matrix of the features ``F`` flattened to ``[B, D]``, with each row divided by its norm
    (at least 1e-12). The loss is ``sum((G_t - G_s)^2) / B^2``. An empty batch gives 0. A sample with all features zero
    has a zero row in ``G`` and no part in the gradient, where plain PyTorch multiplies it by 1e12.

    Args:
        student_features: ``[B, ...]``: maps in any layout, or vectors.
        teacher_features: ``[B, ...]``; the width may differ. Receives a gradient too if it requires one.

    Returns:
        0-dim; float32, or float64 if either input is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape or device.
    """
    if checked():
        check.check_batch("student_features", student_features)
        check.check_batch("teacher_features", teacher_features)
        check.check_same_batch("teacher_features", teacher_features, "student_features", student_features)
    ops = kernels(student_features.device.type)
    if ops is None:
        return reference.sp_loss(student_features, teacher_features)
    return _fused(ops, student_features, teacher_features, None)


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Compute probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018), as its authors and RepDistiller do.

    ``c_ij`` is the cosine of rows i and j, each row divided by its norm + ``eps``. With
    ``p_ij = (c_ij + 1) / sum_j (c_ij + 1)``, the loss is the mean over ``B^2`` of
    ``p_t log((p_t + eps) / (p_s + eps))``. An empty batch gives 0. A row has cosine 0 to all rows and no gradient if it
    is zero, holds NaN or infinity, or has a square too large for its dtype.

    Args:
        student: ``[B, D]``.
        teacher: ``[B, D']``; the width may differ. Receives a gradient too if it requires one.
        eps: from 1e-18 to 1e30.

    Returns:
        0-dim; float32, or float64 if either input is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_batch("student", student, dim=2)
        check.check_batch("teacher", teacher, dim=2)
        check.check_same_batch("teacher", teacher, "student", student)
        check.check_positive("eps", eps, least=1e-18)
    ops = kernels(student.device.type)
    if ops is None:
        return reference.pkt_loss(student, teacher, eps=eps)
    return _fused(ops, student, teacher, float(eps))


def _fused(ops: Any, student: Tensor, teacher: Tensor, eps: float | None) -> Tensor:
    """Compute PKT, or SP if ``eps`` is None."""
    if eps is not None and _has_one_op(ops, student, teacher):
        return _pkt_at_once(ops, student, teacher, eps)
    if needs_function((student, teacher)):
        return _SimilarityLoss.apply(ops, eps, *savable(student, teacher))
    loss, _, _ = _forward(ops, eps, student, teacher, False, False)
    return loss


def _forward(
    ops: Any, eps: float | None, student: Tensor, teacher: Tensor, student_grad: bool, teacher_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss and its slopes, the matrices that map the student's and the teacher's rows to gradients."""
    dtype = accumulator(student, teacher)
    student, teacher = _rows(student), _rows(teacher)
    with _without_autocast(student.device.type):
        grams = _gram(ops, student, dtype), _gram(ops, teacher, dtype)
        if eps is None:
            return ops.sp_forward(*grams, student_grad, teacher_grad)
        norms = _norms(student, dtype), _norms(teacher, dtype)
    return ops.pkt_forward(*grams, *norms, eps, student_grad, teacher_grad)


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the norm of each row in ``dtype``, right even if the squares of its values underflow in ``dtype``."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to(dtype)


def _has_one_op(ops: Any, student: Tensor, teacher: Tensor) -> bool:
    """Return whether one op computes PKT and its gradients."""
    if student.dtype is not teacher.dtype or student.dtype not in (torch.float32, torch.float64):
        return False
    return ops is torch.ops.sftn_fast and computes_at_once(student, teacher)


_PKT_AT_ONCE = Loss("pkt_both", None, ("student", "teacher"))


def _pkt_at_once(ops: Any, student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    if not needs_function((student, teacher)):
        return ops.pkt_both(student, teacher, eps, False, False)[0]
    loss = _PKT_AT_ONCE(ops, student, teacher, eps)
    return _PktAtOnce.apply(ops, eps, *savable(student, teacher)) if loss is None else loss


class _PktAtOnce(AtOnce):
    @staticmethod
    def forward(ctx: Any, ops: Any, eps: float, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        loss, *grads = ops.pkt_both(student, teacher, eps, *ctx.needs_input_grad[2:])
        AtOnce.keep(ctx, (ops, eps, student, teacher), grads)
        return loss


class _SimilarityLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Any, eps: float | None, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        _, _, student_grad, teacher_grad = ctx.needs_input_grad
        loss, student_slope, teacher_slope = _forward(ops, eps, student, teacher, student_grad, teacher_grad)
        rows = student if student_grad else None, teacher if teacher_grad else None
        ctx.save_for_backward(*rows, student_slope, teacher_slope)
        ctx.skip_nan = eps is not None
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return (None,) * 4
        return None, None, *first_derivatives(_backward, ctx, grad_loss)


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student and teacher, None where none is wanted."""
    student, teacher, student_slope, teacher_slope = saved
    pairs = (student, student_slope), (teacher, teacher_slope)
    return [_gradient(*pair, grad_loss, ctx.skip_nan) for pair in pairs]


def _gradient(features: Tensor | None, slope: Tensor, grad_loss: Tensor, skip_nan: bool) -> Tensor | None:
    if features is None:
        return None
    rows = _rows(features)
    if rows.dtype != slope.dtype:
        rows = rows.to(slope.dtype)
    if skip_nan:
        rows = rows.nan_to_num(0.0, 0.0, 0.0)  # the slope of such a row is 0, but 0 times NaN is NaN
    with _without_autocast(features.device.type):
        grad = torch.mm(slope * grad_loss, rows)
    if grad.dtype != features.dtype:
        grad = grad.to(features.dtype)
    if features.dim() == 2:
        return grad
    if _channels_last(features):
        return grad.view(features.movedim(1, -1).shape).movedim(-1, 1)
    return grad.view(features.shape)


def _gram(ops: Any, rows: Tensor, dtype: torch.dtype) -> Tensor:
    if accumulator(rows) != dtype:
        rows = rows.to(dtype)
    if ops is torch.ops.sftn_fast and not rows.is_cuda:
        return ops.gram(rows)
    if rows.dtype == dtype:
        return torch.mm(rows, rows.t())
    if rows.is_cuda:  # exact products of half precision, summed in float32
        return torch.mm(rows, rows.t(), out_dtype=dtype)
    return _gram(ops, rows.to(dtype), dtype)


def _rows(features: Tensor) -> Tensor:
    """Return the features as ``[B, D]`` in memory order, as a view if possible."""
    if features.dim() > 2:
        return (features.movedim(1, -1) if _channels_last(features) else features).flatten(1)
    return features


def _channels_last(features: Tensor) -> bool:
    return features.stride(1) < features.stride(-1)


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Disable autocast, which would run matrix products in half precision. Compiled code may run under it later."""
    if torch.is_autocast_enabled(device_type) or torch.compiler.is_compiling():
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@register_fake("sp_forward")
def _(student_gram: Tensor, teacher_gram: Tensor, student_grad: bool, teacher_grad: bool) -> tuple[Tensor, ...]:
    return _fake_outputs(student_gram, student_grad, teacher_grad)


@register_fake("gram")
def _(rows: Tensor) -> Tensor:
    return rows.new_empty((rows.shape[0], rows.shape[0]), dtype=accumulator(rows))


@register_fake("pkt_both")
def _(student: Tensor, teacher: Tensor, eps: float, student_grad: bool, teacher_grad: bool) -> list[Tensor]:
    wanted = (x for x, asked in ((student, student_grad), (teacher, teacher_grad)) if asked)
    return [student.new_empty(()), *(x.new_empty(x.shape) for x in wanted)]


@register_fake("pkt_forward")
def _(
    student_gram: Tensor,
    teacher_gram: Tensor,
    student_norm: Tensor,
    teacher_norm: Tensor,
    eps: float,
    student_grad: bool,
    teacher_grad: bool,
) -> tuple[Tensor, ...]:
    return _fake_outputs(student_gram, student_grad, teacher_grad)


def _fake_outputs(gram: Tensor, student_grad: bool, teacher_grad: bool) -> tuple[Tensor, ...]:
    slopes = (gram.new_empty(gram.shape if asked else (0, 0)) for asked in (student_grad, teacher_grad))
    return gram.new_empty(()), *slopes
