"""Relational distillation (RKD): the student learns distances and angles between the samples of a batch.

Both losses follow from the squared distances between rows. Nothing with three indices is stored: memory is a few
matrices ``[B, B]``. There is one op in each direction and one ``autograd.Function``. Schemas and formulas are in
``csrc/relational_rkd.h``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype
from sftn_fast.ops._library import register_fake
from sftn_fast.ops._nodes import Loss
from sftn_fast.ops.reference.relational_rkd import TINY
from sftn_fast.ops.terms import RKDTerms


def rkd_distance_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Compute distance-wise relational distillation (Park et al., CVPR 2019).

    In each network, ``d_ij = sqrt(max(|x_i - x_j|^2, eps))`` for i != j, ``d_ii = 0``, and ``m`` is the mean of ``d``
    over i != j. The loss is the mean over all i, j of ``smooth_l1(d_ij / m of the student, d_ij / m of the teacher)``.
    The gradient also flows through the mean. The value is that of ``RkdDistance`` in the authors' and RepDistiller's
    code. Squared distances are sums of squared differences, so features far from the origin lose no digits.

    A batch of one row or none gives 0. Equal rows are ``sqrt(eps)`` apart and have no gradient.

    Args:
        student: ``[B, D]`` embeddings.
        teacher: ``[B, D']``; the width may differ. Receives a gradient too if it requires one.
        eps: least squared distance, above 0.

    Returns:
        0-dim; float32, or float64 if either input is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_embedding_pair("student", student, "teacher", teacher)
        check.check_positive("eps", eps, least=0.0)
    ops = kernels(student.device.type)
    if ops is None:
        return reference.rkd_distance_loss(student, teacher, eps=eps)
    return _fused(ops, student, teacher, Options(eps=max(eps, TINY), distance=True))[0]


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Compute angle-wise relational distillation (Park et al., CVPR 2019).

    With ``e_ij = (x_j - x_i) / max(|x_j - x_i|, eps)``, the loss is the mean over all i, j, k of
    ``smooth_l1(<e_ij, e_ik> of the student, <e_ij, e_ik> of the teacher)``. The value is that of ``RKdAngle`` in the
    authors' and RepDistiller's code.

    A batch of one row or none gives 0. Equal rows have no direction: their cosines are 0 and have no gradient, where
    the authors' code multiplies it by ``1 / eps``. Rows close to each other or far from the origin lose no digits.

    Args:
        student: ``[B, D]`` embeddings.
        teacher: ``[B, D']``; the width may differ. Receives a gradient too if it requires one.
        eps: least divisor of a difference, above 0.

    Returns:
        0-dim; float32, or float64 if either input is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_embedding_pair("student", student, "teacher", teacher)
        check.check_positive("eps", eps, least=0.0)
    ops = kernels(student.device.type)
    if ops is None:
        return reference.rkd_angle_loss(student, teacher, eps=eps)
    return _fused(ops, student, teacher, Options(eps=max(eps, TINY), angle=True))[0]


def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> RKDTerms:
    """Compute ``distance_weight * rkd_distance_loss + angle_weight * rkd_angle_loss`` in one pass.

    The defaults are RepDistiller's; the authors' metric learning weighs them 1 : 2. A term of weight 0 is still
    computed and returned, but its gradient is not.

    Args:
        student: ``[B, D]`` embeddings.
        teacher: ``[B, D']``; the width may differ. Receives a gradient too if it requires one.
        distance_weight: weight of :func:`rkd_distance_loss`.
        angle_weight: weight of :func:`rkd_angle_loss`.

    Returns:
        ``RKDTerms(total, distance, angle)``; see :class:`RKDTerms`.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        check.check_embedding_pair("student", student, "teacher", teacher)
        check.check_finite("distance_weight", distance_weight)
        check.check_finite("angle_weight", angle_weight)
    ops = kernels(student.device.type)
    if ops is None:
        return reference.rkd_loss(student, teacher, distance_weight=distance_weight, angle_weight=angle_weight)
    options = Options(float(distance_weight), float(angle_weight), distance=True, angle=True)
    total, parts = _fused(ops, student, teacher, options)
    return RKDTerms(total, *parts.unbind())


class Options(NamedTuple):
    """Scalars of the raw op, in the schema's order."""

    distance_weight: float = 1.0
    angle_weight: float = 1.0
    eps: float = 1e-12
    distance: bool = False
    angle: bool = False


_LOSS = Loss("relational_rkd_forward", "relational_rkd_backward", ("student", "teacher"), num_returned=2)


def _fused(ops: Any, student: Tensor, teacher: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """Return ``(total, parts)``. Only ``total`` is differentiable."""
    student, teacher = same_dtype((student, teacher))
    if needs_function((student, teacher)):
        results = _LOSS(ops, student, teacher, *options)
        return results or _RKDLoss.apply(ops, options, *savable(student, teacher))
    total, parts, _, _ = ops.relational_rkd_forward(student, teacher, *options, False, False)
    return total, parts


class _RKDLoss(torch.autograd.Function):
    """RKD's autograd. The forward op visits all triples once and saves the gradient of each squared distance."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, student: Tensor, teacher: Tensor
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[2:]
        total, parts, student_pairs, teacher_pairs = ops.relational_rkd_forward(student, teacher, *options, *wanted)
        ctx.save_for_backward(student, teacher, student_pairs, teacher_pairs)
        ctx.ops = ops
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
    student, teacher, student_pairs, teacher_pairs = saved
    backward = ctx.ops.relational_rkd_backward
    return [
        backward(grad_total, rows, pairs) if wanted else None
        for rows, pairs, wanted in zip(
            (student, teacher), (student_pairs, teacher_pairs), ctx.needs_input_grad[2:], strict=True
        )
    ]


@register_fake("relational_rkd_forward")
def _(student: Tensor, teacher: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    student_wanted, teacher_wanted = rest[-2:]
    dtype = accumulator(student)
    b = student.shape[0]
    total, parts = student.new_empty((), dtype=dtype), student.new_empty(2, dtype=dtype)
    sizes = [(b, b) if wanted else (0, 0) for wanted in (student_wanted, teacher_wanted)]
    return total, parts, student.new_empty(sizes[0], dtype=dtype), student.new_empty(sizes[1], dtype=dtype)


@register_fake("relational_rkd_backward")
def _(grad_total: Tensor, rows: Tensor, pairs: Tensor) -> Tensor:
    return rows.new_empty(rows.shape)
