"""Helpers shared by the autograd functions of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Saved = Sequence[Any]  # tensors, or None
REMEDY = "compute the loss in plain PyTorch, `with sftn_fast.ops.backend('reference'):`"
T = TypeVar("T", bound="Tensor | None")


def needs_function(inputs: Sequence[Tensor | None]) -> bool:
    """Return whether a loss must run through its autograd function: when a gradient or a tangent is wanted.

    Otherwise the raw op is enough. Forward-mode differentiation and the transforms of ``torch.func`` hide which input
    requires a gradient. There this raises, where the raw op would silently lose the derivative.

    Raises:
        RuntimeError: in a transform of ``torch.func``, or for an input with a tangent.
    """
    if forward_ad._current_level >= 0:
        _refuse_tangents(inputs)
        return True
    if not torch.is_grad_enabled():
        return False
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(f"the fused losses of sftn_fast have no functorch transforms (torch.func); {REMEDY}")
    for x in inputs:  # noqa: SIM110  any() takes twice as long
        if x is not None and x.requires_grad:
            return True
    return False


def _refuse_tangents(inputs: Sequence[Tensor | None]) -> None:
    transformed = torch._C._are_functorch_transforms_active()
    if transformed or any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        what = "functorch transforms (torch.func)" if transformed else "jvp, which forward-mode differentiation needs"
        raise RuntimeError(f"the fused losses of sftn_fast have no {what}; {REMEDY}")


def savable(*inputs: T) -> tuple[T, ...]:
    """Return tensors that autograd can save for a backward pass; copy those created in ``torch.inference_mode()``.

    Autograd refuses to save inference tensors: it could not detect a write to one before the backward pass.
    """
    if torch.compiler.is_compiling():
        return inputs
    for x in inputs:
        if x is not None and x.is_inference():
            return inputs if torch.is_inference_mode_enabled() else tuple(map(_copy, inputs))
    return inputs


def _copy(x: T) -> T:
    return cast(T, x.clone()) if x is not None and x.is_inference() else x


def first_derivatives(
    backward: Callable[[Any, Tensor, Saved], Sequence[Tensor | None]], ctx: Any, grad_output: Tensor
) -> Sequence[Tensor | None]:
    """Call ``backward(ctx, grad_output, ctx.saved_tensors)`` and make its gradients raise if differentiated again.

    ``torch.autograd.function.once_differentiable`` raises only if ``grad_output`` requires a gradient. Otherwise, for
    example in a gradient penalty, its gradients are constants and the second derivative is silently zero. Compiled
    code gets the plain gradients, because AOTAutograd refuses second derivatives itself.
    """
    saved = ctx.saved_tensors  # read once: activation checkpointing allows a single access
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return backward(ctx, grad_output, saved)
    with torch.no_grad():
        grads = backward(ctx, grad_output, saved)
    return [None if grad is None else _Once.apply(grad, *saved) for grad in grads]


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *saved: Tensor | None) -> Tensor:  # type: ignore[override]
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError(f"the fused losses of sftn_fast have no second derivatives; {REMEDY}")
