"""The losses on logits as autograd functions around the raw ops of ``csrc/logits.h``, which has their formulas.

Below a few thousand logits a loss costs what its Python costs. The path is therefore one ``autograd.Function``, and one
op in each direction or one for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, needs_function, savable
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside
from sftn_fast.ops._library import register_fake


class Options(NamedTuple):
    """Scalars of the raw ops, in the schema's order."""

    temperature: float
    teacher_weight: float = 0.0
    ce_weight: float = 0.0
    kl_weight: float = 1.0
    branch_scale: float = 1.0
    kl_scale: float = 1.0
    student_to_teacher: bool = False
    rows: bool = False
    ignore_index: int = -100
    label_smoothing: float = 0.0


Terms = tuple[Tensor, Tensor, Tensor, Tensor]
"""A loss: total, the teacher's cross-entropy, the students', and the divergence. Only the total is differentiable."""


def fused(ops: Any, teacher: Tensor, students: Sequence[Tensor], target: Tensor | None, options: Options) -> Terms:
    inputs = same_dtype((teacher, *students))
    if target is not None and target.dtype is not torch.int64:
        inputs = widened_beside(inputs, target)
        target = target.to(accumulator(inputs[0]))
    if not needs_function(inputs):
        teacher, *students = inputs
        total, parts, _ = _call(ops.logits_forward, options, target, teacher, students)
    elif _at_once(ops, inputs, options):
        return _AtOnce.apply(ops, options, *savable(target, *inputs))
    else:
        total, parts = _InTwoPasses.apply(ops, options, *savable(target, *inputs))
    teacher_ce, branch_ce, kl, _ = parts.unbind()
    return total, teacher_ce, branch_ce, kl


MOST_KEPT = 65536
"""Most exponentials of a row that the CPU keeps, so that they stay in the second-level cache."""


def _at_once(ops: Any, inputs: Sequence[Tensor], options: Options) -> bool:
    """Return whether one op computes the loss and its gradients: half the exponentials, and half the calls.

    The backward pass is then a multiplication. It needs one number to multiply with, so it is not for rows. Compilers
    get the two ops, of which they can leave out the second.
    """
    teacher = inputs[0]
    small = teacher.shape[1] * len(inputs) <= MOST_KEPT
    return (
        small and teacher.is_cpu and not (options.rows or torch.compiler.is_compiling()) and ops is torch.ops.sftn_fast
    )


def _call(
    op: Any, options: Options, target: Tensor | None, teacher: Tensor, students: Sequence[Tensor], *wanted: bool
) -> Any:
    try:
        return op(teacher, students, target, *options, *wanted)
    except RuntimeError:
        if target is not None and target.dtype is torch.int64:
            check.check_classes(target, teacher.shape[1], options.ignore_index)
        raise


class _AtOnce(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor
    ) -> Terms:
        _, _, _, teacher_wanted, *wanted = ctx.needs_input_grad
        total, teacher_ce, branch_ce, kl, grads = _call(
            ops.logits_both, options, target, teacher, students, teacher_wanted, True in wanted
        )
        ctx.save_for_backward(teacher, *students, *grads)
        ctx.mark_non_differentiable(teacher_ce, branch_ce, kl)
        ctx.set_materialize_grads(False)
        return total, teacher_ce, branch_ce, kl

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, None, None, *first_derivatives(_scale, ctx, grad_total)


def _scale(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients that the forward pass left, times the one that the total was given: mostly 1.

    They may be returned as they are only if no other backward pass needs them, because the caller may write to them.
    """
    _, _, _, teacher_wanted, *wanted = ctx.needs_input_grad
    count, dtype = 1 + len(wanted), saved[0].dtype
    grads: Sequence[Tensor] = saved[count:]
    if torch._C._autograd._get_current_graph_task_keep_graph() or not _is_one(grad_total):
        grads = [grad * grad_total for grad in grads]
    if grads[0].dtype is not dtype:
        grads = [grad.to(dtype) for grad in grads]
    return _beside_unwanted(grads, teacher_wanted, wanted)


def _beside_unwanted(
    grads: Sequence[Tensor], teacher_wanted: bool, students_wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of the teacher and of the students, None in the places of those that were not computed."""
    teacher = grads[0] if teacher_wanted else None
    if True not in students_wanted:
        return [teacher, *[None] * len(students_wanted)]
    return [teacher, *grads[1:]] if teacher_wanted else [teacher, *grads]


def _is_one(x: Tensor) -> bool:
    """Return whether a number on the CPU is 1, False if it can't be read: it is fake, or what happens is recorded."""
    return type(x) is Tensor and torch._C._len_torch_dispatch_stack() == 0 and x.item() == 1


class _InTwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, stats = _call(ops.logits_forward, options, target, teacher, students)
        ctx.save_for_backward(target, parts, stats, teacher, *students)
        ctx.ops, ctx.options = ops, options
        ctx.mark_non_differentiable(parts)
        ctx.set_materialize_grads(False)
        return total, parts

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, None, None, *first_derivatives(_backward, ctx, grad_total)


def _backward(ctx: Any, grad_total: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of the teacher, then of the students, None where none is wanted."""
    target, parts, stats, teacher, *students = saved
    _, _, _, teacher_wanted, *wanted = ctx.needs_input_grad
    grads = ctx.ops.logits_backward(
        grad_total, teacher, students, target, parts, stats, *ctx.options, teacher_wanted, True in wanted
    )
    return _beside_unwanted(grads, teacher_wanted, wanted)


@register_fake("logits_both")
def _(
    teacher: Tensor, students: Sequence[Tensor], target: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    dtype = accumulator(teacher)
    total, teacher_ce, branch_ce, kl = (teacher.new_empty((), dtype=dtype) for _ in range(4))
    teacher_wanted, students_wanted = rest[-2:]
    count = int(teacher_wanted) + len(students) * int(students_wanted)
    return total, teacher_ce, branch_ce, kl, [teacher.new_empty(teacher.shape, dtype=dtype) for _ in range(count)]


@register_fake("logits_forward")
def _(
    teacher: Tensor, students: Sequence[Tensor], target: Tensor | None, *scalars: Any
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(*scalars)
    dtype = accumulator(teacher)
    n = teacher.shape[0]
    width = 3 + 5 * len(students) + int(target is not None and target.is_floating_point())
    total = teacher.new_empty((n,) if options.rows else (), dtype=dtype)
    return total, teacher.new_empty(4, dtype=dtype), teacher.new_empty((n, width), dtype=dtype)


@register_fake("logits_backward")
def _(grad_total: Tensor, teacher: Tensor, students: Sequence[Tensor], *rest: Any) -> list[Tensor]:
    teacher_wanted, students_wanted = rest[-2:]
    count = int(teacher_wanted) + len(students) * int(students_wanted)
    return [teacher.new_empty(teacher.shape) for _ in range(count)]
