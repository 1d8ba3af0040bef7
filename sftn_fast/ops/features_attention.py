"""Losses on attention maps: attention transfer (AT) and factor transfer (FT).

The forward pass runs two kernels and the backward pass one, for any number of channels. The ops' schemas and formulas
are in ``csrc/features_attention.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, in_places, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside
from sftn_fast.ops._layout import same_layout
from sftn_fast.ops._library import register_fake
from sftn_fast.ops._nodes import Loss
from sftn_fast.ops.features_pool import poolable, pooled_alike

VARIANTS = ("repdistiller", "paper")


def at_loss(student_features: Tensor, teacher_features: Tensor, *, p: float = 2) -> Tensor:
    """Compute attention transfer of one stage (Zagoruyko and Komodakis, ICLR 2017).

    The loss is the mean over N and H * W of ``(at(s) - at(t))^2``. ``at(f)`` is the channel mean of ``|f|^p`` at each
    pixel, divided by its norm over the pixels of a sample (at least 1e-12). This is RepDistiller's ``Attention`` and
    the authors' ``at_loss``, except for negative ``f`` with a ``p`` that is not even: they raise ``f`` itself to ``p``.
    The gradient at ``f = 0`` is 0 for every ``p``. The caller adds up the stages.

    The map with more pixels is first averaged to the size of the other, as by ``F.adaptive_avg_pool2d``. This costs one
    more kernel in each direction. An empty batch gives 0.

    Args:
        student_features: ``[N, C, H, W]``; contiguous and channels-last maps are read without a copy.
        teacher_features: ``[N, C', H', W']``. Receives a gradient too if it requires one.
        p: the power, from 0.001 to 16. On a CPU, powers other than 1, 2, 3 and 4 take several times as long.

    Returns:
        0-dim; float32, or float64 if a map is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value; for two maps where one is higher and the other wider.
    """
    if checked():
        _check_maps("student_features", student_features, "teacher_features", teacher_features)
        check_power("p", p)
    ops = kernels(student_features.device.type)
    if ops is None:
        return reference.at_loss(student_features, teacher_features, p=p)
    return _fused(ops, student_features, teacher_features, float(p), absolute=False)


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, *, variant: str = "repdistiller") -> Tensor:
    """Compute factor transfer (Kim et al., NeurIPS 2018) from the translator's to the paraphraser's factor.

    ``"repdistiller"``: the mean over N and H * W of ``|at(s) - at(t)|``, with the ``at`` of :func:`at_loss` at
    ``p = 2``. This is RepDistiller's ``FactorTransfer`` with its defaults. ``"paper"``: the mean over N, C, H, W of
    ``|s / |s| - t / |t||``, with norms over the whole factor of a sample, at least 1e-12. This is the authors' code.
    The gradient of ``|x|`` at 0 is 0.

    The factor with more pixels is first averaged to the size of the other, as in :func:`at_loss`. An empty batch
    gives 0.

    Args:
        student_factor: ``[N, C, H, W]``; contiguous and channels-last factors are read without a copy.
        teacher_factor: ``[N, C', H', W']``. For ``"paper"``, ``C' = C``, and a teacher in another memory layout than
            the student's is copied. Receives a gradient too if it requires one.
        variant: ``"repdistiller"`` or ``"paper"``.

    Returns:
        0-dim; float32, or float64 if a factor is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value; for two factors where one is higher and the other wider.
    """
    if checked():
        _check_factors(student_factor, teacher_factor, variant)
    ops = kernels(student_factor.device.type)
    if ops is None:
        return reference.ft_loss(student_factor, teacher_factor, variant=variant)
    return _fused(ops, student_factor, teacher_factor, 2.0 if variant == "repdistiller" else 0.0, absolute=True)


_LOSS = Loss("features_attention_forward", "features_attention_backward", ("student", "teacher"))


def _fused(ops: Any, student: Tensor, teacher: Tensor, power: float, *, absolute: bool) -> Tensor:
    student, teacher = same_dtype(pooled_alike(ops, *widened_beside((student, teacher))))
    if power > 0:  # attention sums over channels, so student and teacher may differ in layout
        (student,), (teacher,) = same_layout(student), same_layout(teacher)
    else:
        student, teacher = same_layout(student, teacher)
    if needs_function((student, teacher)):
        loss = _LOSS(ops, student, teacher, power, absolute)
        return _AttentionLoss.apply(ops, power, absolute, *savable(student, teacher)) if loss is None else loss
    loss, _, _ = ops.features_attention_forward(student, teacher, power, absolute)
    return loss


class _AttentionLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, power: float, absolute: bool, student: Tensor, teacher: Tensor
    ) -> Tensor:
        loss, maps, stats = ops.features_attention_forward(student, teacher, power, absolute)
        ctx.save_for_backward(student, teacher, maps, stats)
        ctx.ops, ctx.power, ctx.absolute = ops, power, absolute
        ctx.set_materialize_grads(False)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return (None,) * 5
        return None, None, None, *first_derivatives(_backward, ctx, grad_loss)


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student and teacher, None where none is wanted."""
    wanted = ctx.needs_input_grad[3:]
    grads = ctx.ops.features_attention_backward(grad_loss, *saved, ctx.power, ctx.absolute, *wanted)
    return in_places(grads, wanted)


@register_fake("features_attention_forward")
def _(student: Tensor, teacher: Tensor, power: float, absolute: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(student)
    n, _, height, width = student.shape
    maps = student.new_empty((2, n, height * width if power > 0 else 0), dtype=dtype)
    return student.new_empty((), dtype=dtype), maps, student.new_empty((n, 4), dtype=dtype)


@register_fake("features_attention_backward")
def _(grad_loss: Tensor, student: Tensor, teacher: Tensor, *rest: Any) -> list[Tensor]:
    wanted = rest[-2:]
    return [torch.empty_like(x) for x, is_wanted in zip((student, teacher), wanted, strict=True) if is_wanted]


def _check_factors(student: Any, teacher: Any, variant: Any) -> None:
    _check_maps("student_factor", student, "teacher_factor", teacher)
    check.check_choice("variant", variant, VARIANTS)
    if variant == "paper" and student.shape[1] != teacher.shape[1]:
        raise ValueError(
            f"teacher_factor must have the channels of student_factor, {student.shape[1]}, for variant 'paper', "
            f"got {teacher.shape[1]}"
        )


def check_power(name: str, value: Any) -> None:
    """Raise unless the value is a power whose results float32 holds."""
    check.check_positive(name, value, 1e-3, 16.0)


def _check_maps(student_name: str, student: Any, teacher_name: str, teacher: Any) -> None:
    check.check_feature_map(student_name, student)
    check.check_feature_map(teacher_name, teacher)
    check.check_same_batch(teacher_name, teacher, student_name, student)
    if not poolable(student, teacher):
        (height, width), (teacher_height, teacher_width) = student.shape[2:], teacher.shape[2:]
        raise ValueError(
            f"{teacher_name} must be as large as {student_name}, {height} x {width}, or larger or smaller both ways, "
            f"got {teacher_height} x {teacher_width}"
        )
