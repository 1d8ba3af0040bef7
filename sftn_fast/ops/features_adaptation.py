"""The hint loss after a convolution: BatchNorm, ReLU and mean squared error in one op.

Unfused, each of the three saves its own map for the backward pass. Here the forward pass saves a few numbers per
channel, and the backward pass reads the two maps once more and writes the gradient. The ops' schemas and formulas are
in ``csrc/features_adaptation.h``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside
from sftn_fast.ops._layout import same_layout
from sftn_fast.ops._library import register_fake


def adapted_hint_loss(
    features: Tensor,
    teacher_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute FitNets' hint loss (Romero et al., 2015) from the output of RepDistiller's regressor convolution.

    The loss is the mean over all elements of ``(relu(batch_norm(features)) - teacher_features)^2``, equal to
    ``F.mse_loss(F.relu(F.batch_norm(features, running_mean, running_var, weight, bias, training, momentum, eps)),
    teacher_features)``. :class:`sftn_fast.nn.AdaptedHint` holds the convolution and the BatchNorm.

    In training the running statistics are updated in place with the unbiased variance, as in ``F.batch_norm``. This is
    the only write to an argument. An empty batch gives 0 and does not change them.

    Args:
        features: ``[N, C, H, W]``, the output of the convolution.
        teacher_features: the same shape. Receives a gradient too if it requires one.
        weight: ``[C]``, BatchNorm's scale, or None for 1. May be float32 with half-precision features.
        bias: ``[C]``, BatchNorm's shift, or None for 0.
        running_mean: ``[C]``. In training it may be None, to keep no statistics.
        running_var: ``[C]``, or None if ``running_mean`` is None.
        training: True to normalise by the batch's mean and variance, False to use the running ones.
        momentum: weight of the batch, from 0 to 1, in the updated running statistics.
        eps: added to the variance, above 0.

    Returns:
        0-dim; float32, or float64 if a map, ``weight``, ``bias`` or a running statistic in use is float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value; in training for a single value per channel, which has no
            variance.
    """
    if checked():
        _check_maps(features, teacher_features)
        _check_per_channel("weight", weight, features)
        _check_per_channel("bias", bias, features)
        _check_per_channel("running_mean", running_mean, features)
        _check_per_channel("running_var", running_var, features)
        _check_running_statistics(running_mean, running_var, training)
        check.check_flag("training", training)
        check.check_fraction("momentum", momentum)
        check.check_positive("eps", eps)
    for name, statistic in (("running_mean", running_mean), ("running_var", running_var)):
        if statistic is not None:
            check.check_constant(name, statistic)
    count = features.numel()
    if training and count == features.shape[1]:
        raise ValueError(
            f"features must hold more than one value a channel in training, got {list(features.shape)}: "
            "the batch's variance would be 0"
        )
    ops = kernels(features.device.type)
    if ops is None:
        return reference.adapted_hint_loss(
            features,
            teacher_features,
            weight,
            bias,
            running_mean,
            running_var,
            training=training,
            momentum=momentum,
            eps=eps,
        )
    loss, stats = _fused(
        ops, features, teacher_features, weight, bias, None if training else (running_mean, running_var), float(eps)
    )
    if training and running_mean is not None and running_var is not None and count > 0:
        with torch.no_grad():
            _update(running_mean, stats[0], momentum)
            _update(running_var, stats[1], momentum)
    return loss


def _update(running: Tensor, of_batch: Tensor, momentum: float) -> None:
    running.lerp_(of_batch if of_batch.dtype == running.dtype else of_batch.to(running.dtype), momentum)


NUM_STATS = 6
"""Rows of ``stats``: mean, unbiased variance, two more statistics, then the gradients of bias and weight."""


def _fused(
    ops: Any,
    features: Tensor,
    teacher: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None] | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return ``(loss, stats)``. Only the loss is differentiable."""
    maps = widened_beside((features, teacher), weight, bias, *(running or ()))
    features, teacher = same_layout(*same_dtype(maps))
    dtype = accumulator(features)
    weight, bias, mean, var = (
        x if x is None or x.dtype == dtype else x.to(dtype) for x in (weight, bias, *(running or (None, None)))
    )
    inputs = (features, teacher, weight, bias)
    if needs_function(inputs):
        return _AdaptedHintLoss.apply(ops, eps, mean, var, *savable(*inputs))
    return ops.adapted_hint_forward(*inputs, mean, var, eps)


class _AdaptedHintLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        ops: Any,
        eps: float,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        features: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        loss, stats = ops.adapted_hint_forward(features, teacher, weight, bias, running_mean, running_var, eps)
        ctx.save_for_backward(features, teacher, weight, bias, stats)
        ctx.ops, ctx.training = ops, running_mean is None
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        return loss, stats

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return (None,) * 8
        return None, None, None, None, *first_derivatives(_backward, ctx, grad_loss)


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of features, teacher, weight and bias, None where none is wanted."""
    features_wanted, teacher_wanted, weight_wanted, bias_wanted = ctx.needs_input_grad[4:]
    affine_wanted = weight_wanted or bias_wanted
    computed = ctx.ops.adapted_hint_backward(
        grad_loss, *saved, ctx.training, features_wanted, teacher_wanted, affine_wanted
    )
    features_grad = computed[0] if features_wanted else None
    teacher_grad = computed[int(features_wanted)] if teacher_wanted else None
    bias_grad, weight_grad = computed[-1].unbind() if affine_wanted else (None, None)
    return [features_grad, teacher_grad, weight_grad if weight_wanted else None, bias_grad if bias_wanted else None]


@register_fake("adapted_hint_forward")
def _(features: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    dtype = accumulator(features)
    return features.new_empty((), dtype=dtype), features.new_empty((NUM_STATS, features.shape[1]), dtype=dtype)


@register_fake("adapted_hint_backward")
def _(grad_loss: Tensor, features: Tensor, teacher: Tensor, *rest: Any) -> list[Tensor]:
    *maps_wanted, affine_wanted = rest[-3:]
    maps = [torch.empty_like(x) for x, wanted in zip((features, teacher), maps_wanted, strict=True) if wanted]
    return [*maps, grad_loss.new_empty((2, features.shape[1]))] if affine_wanted else maps


def _check_maps(features: Any, teacher_features: Any) -> None:
    check.check_floating("features", features)
    check.check_floating("teacher_features", teacher_features)
    if features.dim() != 4 or features.shape[1] == 0:
        raise ValueError(f"features must be [N, C, H, W] with C at least 1, got {list(features.shape)}")
    check.check_like("teacher_features", teacher_features, "features", features)


def _check_per_channel(name: str, value: Any, features: Tensor) -> None:
    if value is None:
        return
    check.check_floating(name, value)
    if value.shape != features.shape[1:2]:
        raise ValueError(f"{name} must be [C] = [{features.shape[1]}], got {list(value.shape)}")
    check.check_same_device(name, value, "features", features)


def _check_running_statistics(running_mean: Tensor | None, running_var: Tensor | None, training: bool) -> None:
    if (running_mean is None) != (running_var is None):
        missing = "running_mean" if running_mean is None else "running_var"
        raise ValueError(f"running_mean and running_var must be given together or not at all, got no {missing}")
    if running_mean is None and not training:
        raise ValueError("running_mean and running_var must be given where training is False, got None")
