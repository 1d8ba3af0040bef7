"""Helpers shared by the autograd functions of the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad

Saved = Sequence[Any]  # tensors, or None
REMEDY = "compute the loss in plain PyTorch, `with sftn_fast.ops.backend('reference'):`"
NO_SECOND_DERIVATIVE = f"the fused losses of sftn_fast have no second derivatives; {REMEDY}"
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


# Of a small loss, finding a name takes as long as using it.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_is_transformed = torch._C._are_functorch_transforms_active
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
_len_dispatch_stack = torch._C._len_torch_dispatch_stack

PLAIN = (Tensor, torch.nn.Parameter)
"""Types of tensors that hold values of their own. Subclasses may be fake, or stand for others."""


def computes_at_once(*inputs: Tensor) -> bool:
    """Return whether a loss may compute its gradients in the forward pass: for plain tensors on a CPU.

    Compilers get the two ops, of which they can leave out the second. On a GPU, two launches wait less for memory.
    """
    for x in inputs:
        if type(x) not in PLAIN or not x.is_cpu:
            return False
    return not _is_compiling()


class Refused(Exception):
    """An op refused its arguments. The checks of the loss say what is wrong with them."""


def tries_at_once(student: Any, teacher: Any) -> bool:
    """Return whether a loss of a student that learns may call its op before any check.

    The op checks whatever it touches. A loss that it refuses goes the long way.
    """
    return (
        not _is_compiling()
        and type(student) in PLAIN
        and type(teacher) in PLAIN
        and student.requires_grad
        and student.is_cpu
        and teacher.is_cpu
        and student.dtype is teacher.dtype
        and _is_grad_enabled()
        and not student.is_inference()
        and forward_ad._current_level < 0
        and not _is_transformed()
    )


class AtOnce(torch.autograd.Function):
    """The autograd of a loss whose op computes its gradients too.

    A subclass has the forward pass, which saves the inputs that want a gradient and then these gradients, for a total
    of 1. The backward pass multiplies them by the gradient that the total was given: mostly 1.
    """

    @staticmethod
    def keep(ctx: Any, inputs: Sequence[Any], grads: Sequence[Tensor]) -> None:
        """Save the gradients of those inputs of the function that want one, in order."""
        wanted = [x for x, is_wanted in zip(inputs, ctx.needs_input_grad, strict=True) if is_wanted]
        ctx.save_for_backward(*wanted, *grads)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        wanted = ctx.needs_input_grad
        if grad_total is None:
            return (None,) * len(wanted)
        # saved tensors are read once: activation checkpointing allows a single access
        return tuple(in_places(kept_gradients(ctx.saved_tensors, grad_total), wanted))


def in_places(grads: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients of the inputs that want one in these inputs' places, None in the others."""
    remaining = iter(grads)
    return [next(remaining) if is_wanted else None for is_wanted in wanted]


def kept_gradients(saved: Saved, grad_total: Tensor) -> Sequence[Tensor]:
    """Return gradients that a forward pass kept, times ``grad_total``, in the dtype of their inputs.

    ``saved`` holds the inputs, then a gradient for each. Gradients of these raise, as in :func:`first_derivatives`.
    """
    if _is_grad_enabled():
        with torch.no_grad():
            grads = kept_gradients(saved, grad_total)
        return [_Once.apply(grad, *saved) for grad in grads]
    grads, dtype = scaled(saved[len(saved) // 2 :], grad_total), saved[0].dtype
    return grads if grads[0].dtype is dtype else [grad.to(dtype) for grad in grads]


def scaled(grads: Sequence[Tensor], grad_total: Tensor) -> Sequence[Tensor]:
    """Return gradients that a forward pass on the CPU left, times the gradient that its total was given: mostly 1.

    They may be handed out or written to only if no other backward pass needs them, because the caller may write to
    them too. What is fake or recorded can't be compared with 1.
    """
    if _keeps_graph() or not is_readable(grad_total):
        return [grad * grad_total for grad in grads]
    if grad_total.item() != 1:
        return [grad.mul_(grad_total) for grad in grads]
    return grads


def is_readable(x: Tensor) -> bool:
    """Return whether values on the CPU can be read: they are not fake, and nothing records what happens."""
    return type(x) in PLAIN and _len_dispatch_stack() == 0


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, *saved: Tensor | None) -> Tensor:  # type: ignore[override]
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Any:  # type: ignore[override]
        raise RuntimeError(NO_SECOND_DERIVATIVE)
