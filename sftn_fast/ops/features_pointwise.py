"""Elementwise losses between a student's and a teacher's feature map: hint, AB, OH and VID.

Each is a sum of squared residuals. One kernel computes all four, with one formula for each. The formulas and the
schemas of the raw ops are in ``csrc/features_pointwise.h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import (
    Refused,
    Saved,
    first_derivatives,
    in_places,
    is_readable,
    needs_function,
    savable,
    scaled,
    tries_at_once,
)
from sftn_fast.ops._backend import kernels, runs_cpu_kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside
from sftn_fast.ops._layout import same_layout
from sftn_fast.ops._library import direct, register_fake
from sftn_fast.ops._nodes import Loss
from sftn_fast.ops.features_pool import poolable, pooled_alike

HINT, AB, OH, VID = range(4)
WIDE = (torch.float32, torch.float64)


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute the hint loss of FitNets (Romero et al., ICLR 2015), the mean squared error between two feature maps.

    The loss is ``mean((s - t)^2)`` over all elements. An empty batch gives 0.

    Args:
        student_features: ``[N, C, ...]``, the regressor's output, with any number of trailing dimensions or none.
        teacher_features: the same shape. Receives a gradient too if it requires one.

    Returns:
        0-dim; float32, or float64 for float64 maps.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape or device.
    """
    if _tries_hint(student_features, teacher_features):
        try:
            return _Hint.apply(student_features, teacher_features)
        except Refused:
            pass
    if checked():
        check.check_map_pair("student_features", student_features, "teacher_features", teacher_features)
    ops = kernels(student_features.device.type)
    if ops is None:
        return reference.hint_loss(student_features, teacher_features)
    options = Options(HINT, 0.0, 1 / max(student_features.numel(), 1))
    return _fused(ops, student_features, teacher_features, None, options)


def ab_loss(student_preact: Tensor, teacher_preact: Tensor, *, margin: float = 1.0) -> Tensor:
    """Compute the activation boundary loss (Heo et al., AAAI 2019), which pulls signs to the teacher's by a margin.

    The loss is ``sum(max(m - s, 0)^2 where t > 0, max(m + s, 0)^2 elsewhere) / N``. It omits the authors' factor of
    3/1000 and their layer weights. An empty batch gives 0.

    Args:
        student_preact: ``[N, C, ...]``, the connector's output, before the ReLU.
        teacher_preact: the same shape, before the ReLU. Only its signs matter, and it receives no gradient.
        margin: ``m``, at most 1e15.

    Returns:
        0-dim; float32, or float64 for float64 maps.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a teacher that requires a gradient.
    """
    if checked():
        check.check_map_pair("student_preact", student_preact, "teacher_preact", teacher_preact)
        check_margin("margin", margin)
    check.check_constant("teacher_preact", teacher_preact)
    ops = kernels(student_preact.device.type)
    if ops is None:
        return reference.ab_loss(student_preact, teacher_preact, margin=margin)
    options = Options(AB, float(margin), 1 / max(student_preact.shape[0], 1))
    return _fused(ops, student_preact, teacher_preact, None, options)


def oh_loss(student_preact: Tensor, teacher_preact: Tensor, margin: Tensor) -> Tensor:
    """Compute the partial L2 distance with margin ReLU of "A comprehensive overhaul of feature distillation".

    The loss is ``sum((s - t')^2 where s > t' or t' > 0) / N`` with ``t' = max(t, margin_c)`` (Heo et al., ICCV 2019).
    It omits the authors' factor of 1/1000 and their layer weights. An empty batch gives 0.

    Args:
        student_preact: ``[N, C, ...]``, the connector's output, before the ReLU.
        teacher_preact: the same shape, before the ReLU. Receives a gradient too if it requires one.
        margin: ``[C]``, a constant, from :func:`oh_margin`.

    Returns:
        0-dim; float32, or float64 if a map or the margin is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape or device, and for a margin that requires a gradient.
    """
    if checked():
        check.check_map_pair("student_preact", student_preact, "teacher_preact", teacher_preact)
        check.check_channels("margin", margin, "student_preact", student_preact)
    check.check_constant("margin", margin)
    ops = kernels(student_preact.device.type)
    if ops is None:
        return reference.oh_loss(student_preact, teacher_preact, margin)
    options = Options(OH, 0.0, 1 / max(student_preact.shape[0], 1))
    return _fused(ops, student_preact, teacher_preact, margin, options)


def oh_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Compute the margins of :func:`oh_loss` from the teacher's BatchNorm before the ReLU.

    A margin is the mean of the negative part of a normal distribution with deviation ``s = |weight|`` and mean
    ``m = bias``: ``m - s phi(m / s) / Phi(-m / s)``, or ``-3 s`` where the probability ``Phi(-m / s)`` is 0.001 or
    less. It is a constant, computed in float64: no gradient flows to the BatchNorm. A weight of 0 gives ``min(m, 0)``.

    Args:
        weight: ``[C]``.
        bias: ``[C]``.

    Returns:
        ``[C]`` of the weight's dtype.

    Raises:
        TypeError: for an argument that is not a floating-point tensor.
        ValueError: for a wrong shape or device.
    """
    if checked():
        check.check_vector("weight", weight)
        check.check_vector("bias", bias)
        check.check_like("bias", bias, "weight", weight)
    return reference.oh_margin(weight, bias)


def vid_loss(mean: Tensor, log_scale: Tensor, teacher_features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Compute variational information distillation (Ahn et al., CVPR 2019), a Gaussian's negative log-likelihood.

    The loss is ``mean(0.5 ((mean - t)^2 / v_c + log v_c))`` over all elements with
    ``v_c = softplus(log_scale_c) + eps``. As in RepDistiller, the constant is omitted. An empty batch gives 0.

    Maps ``[N, C, H, W]`` may differ in size if one is not smaller than the other in height and width. The larger one is
    average-pooled to the smaller, as by ``F.adaptive_avg_pool2d``. (RepDistiller pools a larger student before its
    regressor, which is outside this function.)

    Args:
        mean: ``[N, C, ...]``, the regressor's output for the student's features.
        log_scale: ``[C]``, learned.
        teacher_features: ``[N, C, ...]``. Receives a gradient too if it requires one.
        eps: the least variance, above 0.

    Returns:
        0-dim; float32, or float64 if a map or ``log_scale`` is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value.
    """
    if checked():
        _check_vid(mean, log_scale, teacher_features, eps)
    ops = kernels(mean.device.type)
    if ops is None:
        return reference.vid_loss(mean, log_scale, teacher_features, eps=eps)
    mean, teacher_features = pooled_alike(ops, *widened_beside((mean, teacher_features), log_scale))
    options = Options(VID, float(eps), 1 / max(mean.numel(), 1))
    return _fused(ops, mean, teacher_features, log_scale, options)


class Options(NamedTuple):
    """Scalars of the raw ops, in the schema's order."""

    kind: int
    parameter: float  # AB's margin, VID's eps
    scale: float


_LOSS = Loss("features_pointwise_forward", "features_pointwise_backward", ("student", "teacher", "channel"))


def _fused(ops: Any, student: Tensor, teacher: Tensor, channel: Tensor | None, options: Options) -> Tensor:
    student, teacher = same_dtype((student, teacher))
    if channel is not None:
        student, teacher = widened_beside((student, teacher), channel)
        channel = channel.to(accumulator(student)).contiguous()
    student, teacher = same_layout(student, teacher)
    inputs = student, teacher, channel
    if not needs_function(inputs):
        return ops.features_pointwise_forward(*inputs, *options)[0]
    loss = _LOSS(ops, *inputs, *options)
    return _PointwiseLoss.apply(ops, options, *savable(*inputs)) if loss is None else loss


SMALL = 65536
"""Most elements of a map whose hint loss computes its gradient in the forward pass."""


def _tries_hint(student: Any, teacher: Any) -> bool:
    return (
        tries_at_once(student, teacher)
        and runs_cpu_kernels()
        and student.dtype in WIDE
        and 0 < student.numel() <= SMALL
        and not (teacher.requires_grad or teacher.is_inference())
    )


_pointwise_both = direct("features_pointwise_both")


class _Hint(torch.autograd.Function):
    """The hint loss of a small map and a constant in one op, with fewer steps: they are most of its cost."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        try:
            total, grad = _pointwise_both(student, teacher, None, HINT, 0.0, 1 / student.numel(), True, False, False)
        except Exception as error:
            raise Refused from error
        ctx.save_for_backward(student, teacher, grad)
        ctx.set_materialize_grads(False)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return None, None
        return *first_derivatives(_hint_backward, ctx, grad_total), None


def _hint_backward(_: Any, grad_total: Tensor, saved: Saved) -> Sequence[Tensor]:
    """Scale the gradient that was kept, unless scaling up would show that tiny values had been lost."""
    student, teacher, grad = saved
    if is_readable(grad_total) and abs(grad_total.item()) <= 1:
        return scaled((grad,), grad_total)
    options = Options(HINT, 0.0, 1 / student.numel())
    stats, wanted = student.new_empty(0), (True, False, False)
    return torch.ops.sftn_fast.features_pointwise_backward(grad_total, student, teacher, None, stats, *options, *wanted)


class _PointwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, student: Tensor, teacher: Tensor, channel: Tensor | None
    ) -> Tensor:
        total, stats = ops.features_pointwise_forward(student, teacher, channel, *options)
        ctx.save_for_backward(student, teacher, channel, stats)
        ctx.ops, ctx.options = ops, options
        ctx.set_materialize_grads(False)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * 5
        return None, None, *first_derivatives(_backward, ctx, grad_total)


def _backward(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student, teacher and channel, None where none is wanted."""
    wanted = ctx.needs_input_grad[2:]
    return in_places(ctx.ops.features_pointwise_backward(grad_total, *saved, *ctx.options, *wanted), wanted)


@register_fake("features_pointwise_both")
def _(student: Tensor, teacher: Tensor, channel: Tensor | None, *rest: Any) -> list[Tensor]:
    return [student.new_empty(()), *_fake_gradients(student, channel, *rest[-3:])]


@register_fake("features_pointwise_forward")
def _(student: Tensor, teacher: Tensor, channel: Tensor | None, kind: int, *scalars: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator(student)
    stats = (2, student.shape[1]) if kind == VID else (0,)
    return student.new_empty((), dtype=dtype), student.new_empty(stats, dtype=dtype)


@register_fake("features_pointwise_backward")
def _(grad_total: Tensor, student: Tensor, teacher: Tensor, channel: Tensor | None, *rest: Any) -> list[Tensor]:
    return _fake_gradients(student, channel, *rest[-3:])


def _fake_gradients(
    student: Tensor, channel: Tensor | None, student_wanted: bool, teacher_wanted: bool, channel_wanted: bool
) -> list[Tensor]:
    grads = [torch.empty_like(student) for _ in range(int(student_wanted) + int(teacher_wanted))]
    if channel_wanted and channel is not None:
        grads.append(torch.empty_like(channel))
    return grads


def check_margin(name: str, value: Any) -> None:
    """Raise unless the value is a number whose square float32 holds."""
    check.check_finite(name, value, most=1e15)


def _check_vid(mean: Any, log_scale: Any, teacher: Any, eps: Any) -> None:
    check.check_map("mean", mean)
    check.check_map("teacher_features", teacher)
    if teacher.shape != mean.shape:
        _check_poolable(mean, teacher)
    check.check_same_device("teacher_features", teacher, "mean", mean)
    check.check_channels("log_scale", log_scale, "mean", mean)
    check.check_positive("eps", eps)


def _check_poolable(mean: Tensor, teacher: Tensor) -> None:
    """Raise if neither map can be pooled to the other's size."""
    maps_alike = mean.dim() == teacher.dim() == 4 and mean.shape[:2] == teacher.shape[:2]
    if maps_alike and 0 not in (*mean.shape[2:], *teacher.shape[2:]) and poolable(mean, teacher):
        return
    raise ValueError(
        f"teacher_features must have the shape of mean, {list(mean.shape)}, or be a map [N, C, H, W] that differs from "
        f"it in size alone and is not smaller in one direction and larger in the other, got {list(teacher.shape)}"
    )
