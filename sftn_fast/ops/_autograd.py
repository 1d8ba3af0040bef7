"""What the losses' autograd functions share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

Saved = Sequence[Any]  # tensors, or None
T = TypeVar("T", bound="Tensor | None")


def needs_function(inputs: Sequence[Tensor | None]) -> bool:
    """Whether a loss must go through its autograd function: where a gradient is asked for, or a tangent.

    Everywhere else the raw op does. Inside forward-mode differentiation, and inside ``torch.func``'s transforms, which
    hide what asks for a gradient, the function refuses, where the raw op would lose the derivative in silence.
    """
    if forward_ad._current_level >= 0:
        return True
    if not torch.is_grad_enabled():
        return False
    if torch._C._are_functorch_transforms_active():
        return True
    for x in inputs:  # noqa: SIM110  any() takes twice as long
        if x is not None and x.requires_grad:
            return True
    return False


def savable(*inputs: T) -> tuple[T, ...]:
    """What may be saved for a backward pass: copies of tensors that were made under ``torch.inference_mode()``.

    Autograd refuses to save those. It could not tell either whether somebody writes to one before the backward pass.
    """
    if torch.compiler.is_compiling():
        return inputs
    for x in inputs:
        if x is not None and x.is_inference():
            return inputs if torch.is_inference_mode_enabled() else tuple(map(_copy, inputs))
    return inputs


def _copy(x: Any) -> Any:
    return x.clone() if x is not None and x.is_inference() else x


def first_derivatives(
    backward: Callable[[Any, Tensor, Saved], Sequence[Tensor | None]], ctx: Any, grad_output: Tensor
) -> Sequence[Tensor | None]:
    """``backward(ctx, grad_output, ctx.saved_tensors)``: gradients that raise when they are differentiated again.

    ``torch.autograd.function.once_differentiable`` does so only where ``grad_output`` requires a gradient; elsewhere,
    as in a gradient penalty, it hands out gradients that are constants, and the second derivative is a silent zero.
    What is compiled gets them as they are: AOTAutograd refuses second derivatives itself.
    """
    saved = ctx.saved_tensors  # which activation checkpointing hands out once
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
        raise RuntimeError(
            "the fused losses of sftn_fast have no second derivatives; `with sftn_fast.ops.backend('reference'):` "
            "computes the loss in plain PyTorch, which has"
        )
