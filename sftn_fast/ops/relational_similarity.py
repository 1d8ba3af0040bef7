"""Losses on how alike the samples of a batch are to each other: SP and PKT.

Both see the features through the Gram matrix ``F F^T`` alone, which is a matrix product and PyTorch's. What follows on
``[B, B]`` is one op, ``csrc/relational_similarity.h``, that also gives the loss's slope along the Gram matrix; the
features' gradient is then one more product. A sum over features does not depend on their order, so each map is read as
it lies in memory.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._dtype import accumulator
from sftn_fast.ops._library import register_fake


def sp_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Similarity-preserving distillation (Tung and Mori, ICCV 2019), as in RepDistiller.

    ``G = F F^T`` of the features ``F`` flattened to ``[B, D]``, each row of ``G`` divided by its norm (1e-12 at least);
    ``sum((G_t - G_s)^2) / B^2``. An empty batch gives 0. A sample whose features are all zero is like no other: its
    row of ``G`` is zero and takes no part in the gradient, where plain PyTorch multiplies it by 1e12.

    Args:
        student_features: ``[B, ...]``: maps in any layout, or vectors.
        teacher_features: ``[B, ...]``, of any other width. Receives a gradient too if it requires one.

    Returns:
        0-dim; float32, or float64 if either is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape or device.
    """
    check.check_batch("student_features", student_features)
    check.check_batch("teacher_features", teacher_features)
    check.check_same_batch("teacher_features", teacher_features, "student_features", student_features)
    ops = kernels(student_features.device.type)
    if ops is None:
        return reference.sp_loss(student_features, teacher_features)
    return _fused(ops, student_features, teacher_features, None)


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018), as its authors and RepDistiller compute it.

    With ``c_ij`` the cosine of rows i and j, of which each is divided by its norm + ``eps``, and
    ``p_ij = (c_ij + 1) / sum_j (c_ij + 1)``: the mean over ``B^2`` of ``p_t log((p_t + eps) / (p_s + eps))``. An empty
    batch gives 0. A row of zeros, with NaN or infinity in it, or whose square its dtype does not hold, has
    cosine 0 to all rows and no gradient.

    Args:
        student: ``[B, D]``.
        teacher: ``[B, D]``, of any other width. Receives a gradient too if it requires one.
        eps: from 1e-18 to 1e30.

    Returns:
        0-dim; float32, or float64 if either is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    check.check_batch("student", student, dim=2)
    check.check_batch("teacher", teacher, dim=2)
    check.check_same_batch("teacher", teacher, "student", student)
    check.check_positive("eps", eps, least=1e-18)
    ops = kernels(student.device.type)
    if ops is None:
        return reference.pkt_loss(student, teacher, eps=eps)
    return _fused(ops, student, teacher, float(eps))


def _fused(ops: Any, student: Tensor, teacher: Tensor, eps: float | None) -> Tensor:
    """PKT, or without ``eps`` SP."""
    if needs_function((student, teacher)):
        return _SimilarityLoss.apply(ops, eps, *savable(student, teacher))
    loss, _, _ = _forward(ops, eps, student, teacher, False, False)
    return loss


def _forward(
    ops: Any, eps: float | None, student: Tensor, teacher: Tensor, student_grad: bool, teacher_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the matrices that make the student's and the teacher's rows their gradients."""
    dtype = accumulator(student, teacher)
    student, teacher = _rows(student, dtype), _rows(teacher, dtype)
    with _without_autocast(student.device.type):
        grams = _gram(student, dtype), _gram(teacher, dtype)
        if eps is None:
            return ops.sp_forward(*grams, student_grad, teacher_grad)
        norms = _norms(student, dtype), _norms(teacher, dtype)
    return ops.pkt_forward(*grams, *norms, eps, student_grad, teacher_grad)


def _norms(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each row, in ``dtype``, also where the squares of what it holds are too small for it."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).to(dtype)


class _SimilarityLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ops: Any, eps: float | None, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        _, _, student_grad, teacher_grad = ctx.needs_input_grad
        loss, student_slope, teacher_slope = _forward(ops, eps, student, teacher, student_grad, teacher_grad)
        rows = student if student_grad else None, teacher if teacher_grad else None
        ctx.save_for_backward(*rows, student_slope, teacher_slope)
        ctx.skip_nan = eps is not None
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return None, None, *first_derivatives(_backward, ctx, grad_loss)


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """The student's gradient and the teacher's; None where none is asked for."""
    student, teacher, student_slope, teacher_slope = saved
    pairs = (student, student_slope), (teacher, teacher_slope)
    return [_gradient(*pair, grad_loss, ctx.skip_nan) for pair in pairs]


def _gradient(features: Tensor | None, slope: Tensor, grad_loss: Tensor, skip_nan: bool) -> Tensor | None:
    if features is None:
        return None
    rows = _rows(features, slope.dtype)
    if rows.dtype != slope.dtype:
        rows = rows.to(slope.dtype)
    if skip_nan:
        rows = rows.nan_to_num(0.0, 0.0, 0.0)  # such a row's slope is 0, and 0 times NaN is not
    with _without_autocast(features.device.type):
        grad = torch.mm(slope * grad_loss, rows)
    if grad.dtype != features.dtype:
        grad = grad.to(features.dtype)
    if features.dim() == 2:
        return grad
    if _channels_last(features):
        return grad.view(features.movedim(1, -1).shape).movedim(-1, 1)
    return grad.view(features.shape)


def _gram(rows: Tensor, dtype: torch.dtype) -> Tensor:
    if rows.dtype == dtype:
        return torch.mm(rows, rows.t())
    return torch.mm(rows, rows.t(), out_dtype=dtype)  # exact products of half precision, summed in float32


def _rows(features: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, D]``, in the order of memory and a view where it can be one.

    Of ``dtype``, or of a half-precision one where the device multiplies that into ``dtype``.
    """
    if features.dim() > 2:
        features = (features.movedim(1, -1) if _channels_last(features) else features).flatten(1)
    if features.dtype == dtype or (features.is_cuda and dtype == torch.float32):
        return features
    return features.to(dtype)


def _channels_last(features: Tensor) -> bool:
    return features.stride(1) < features.stride(-1)


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Autocast would have matrix products in half precision. What is compiled may run under it later."""
    if torch.is_autocast_enabled(device_type) or torch.compiler.is_compiling():
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@register_fake("sp_forward")
def _(student_gram: Tensor, teacher_gram: Tensor, student_grad: bool, teacher_grad: bool) -> tuple[Tensor, ...]:
    return _fake_outputs(student_gram, student_grad, teacher_grad)


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
