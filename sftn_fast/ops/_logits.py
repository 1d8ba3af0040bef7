"""The losses on logits as autograd functions around the raw ops of ``csrc/logits.h``, which has their formulas.

Below a few thousand logits a loss costs what its Python costs. The path is therefore one ``autograd.Function``, and one
op in each direction or one for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import (
    AtOnce,
    Refused,
    Saved,
    computes_at_once,
    first_derivatives,
    in_places,
    kept_gradients,
    needs_function,
    savable,
)
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside
from sftn_fast.ops._library import direct, register_fake
from sftn_fast.ops._nodes import Loss


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


def fused(
    ops: Any, teacher: Tensor, students: Sequence[Tensor], target: Tensor | None, options: Options
) -> Sequence[Tensor]:
    """Return the total, and with a target the teacher's cross-entropy, the students', and the divergence.

    Only the total is differentiable.
    """
    inputs = same_dtype((teacher, *students))
    if target is not None and target.dtype is not torch.int64:
        inputs = widened_beside(inputs, target)
        target = target.to(accumulator(inputs[0]))
    if not needs_function(inputs):
        teacher, *students = inputs
        total, parts, _ = _call(ops.logits_forward, options, target, teacher, students, *options)
    elif _fits(ops, inputs, options) and computes_at_once(*inputs):
        return _at_once(ops, options, target, *inputs)
    else:
        total, parts = _in_two_passes(ops, options, target, *inputs)
    return (total,) if target is None else (total, *parts.unbind()[:3])


_AT_ONCE = Loss("logits_both", None, ("teacher", "students"))
_IN_TWO_PASSES = Loss("logits_forward", "logits_backward", ("teacher", "students"), num_returned=2)


def _at_once(ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor) -> Sequence[Tensor]:
    terms = _call(partial(_AT_ONCE, ops), options, target, teacher, students, packed(options), options.ignore_index)
    if terms is None:
        return _AtOnce.apply(ops, options, target, *savable(teacher, *students))
    return (terms,) if target is None else terms


def _in_two_passes(
    ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor
) -> tuple[Tensor, Tensor]:
    results = _call(partial(_IN_TWO_PASSES, ops), options, target, teacher, students, *options)
    return results or _InTwoPasses.apply(ops, options, *savable(target, teacher, *students))


MOST_KEPT = 65536
"""Most exponentials of a row that the CPU keeps, so that they stay in the second-level cache."""


def _fits(ops: Any, inputs: Sequence[Tensor], options: Options) -> bool:
    """Return whether there is an op for the loss and its gradients: half the exponentials, and half the calls.

    The backward pass is then a multiplication. It needs one number to multiply with, so it is not for rows.
    """
    return not options.rows and inputs[0].shape[1] * len(inputs) <= MOST_KEPT and ops is torch.ops.sftn_fast


def _call(
    op: Any, options: Options, target: Tensor | None, teacher: Tensor, students: Sequence[Tensor], *rest: Any
) -> Any:
    try:
        return op(teacher, students, target, *rest)
    except RuntimeError:
        if target is not None and target.dtype is torch.int64:
            check.check_classes(target, teacher.shape[1], options.ignore_index)
        raise


@lru_cache(maxsize=64)
def packed(options: Options) -> Tensor:
    """Return the scalars of ``logits_both``, which would take longer to parse than a small loss to compute."""
    with _disable_current_modes():
        return torch.tensor((*options[:7], options.label_smoothing), dtype=torch.float64, device="cpu")


class _AtOnce(AtOnce):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor
    ) -> tuple[Tensor, ...]:
        _, _, _, teacher_wanted, *wanted = ctx.needs_input_grad
        scalars = packed(options), options.ignore_index
        results = _call(ops.logits_both, options, target, teacher, students, *scalars, teacher_wanted, True in wanted)
        num_terms = 1 if target is None else 4
        terms, grads = results[:num_terms], results[num_terms:]
        grads = _of_wanted(grads, teacher_wanted, wanted)
        AtOnce.keep(ctx, (ops, options, target, teacher, *students), grads)
        ctx.mark_non_differentiable(*terms[1:])
        return tuple(terms)


def _of_wanted(grads: Sequence[Tensor], teacher_wanted: bool, students_wanted: Sequence[bool]) -> Sequence[Tensor]:
    """Return the gradients of the inputs that want one. The ops compute those of all students or of none."""
    if False not in students_wanted or True not in students_wanted:
        return grads
    start = int(teacher_wanted)
    of_students = zip(grads[start:], students_wanted, strict=True)
    return [*grads[:start], *[grad for grad, wanted in of_students if wanted]]


def remembered(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Remember the results of a function that checks and packs scalars, by their values and types.

    True is no number, though it equals 1. What can't be looked up is no number either: the function says so.
    """
    by_value = lru_cache(maxsize=64, typed=True)(function)

    def look_up(*scalars: Any) -> Tensor:
        try:
            return by_value(*scalars)
        except TypeError:
            return function(*scalars)

    return look_up


def fits_one_student(shape: torch.Size) -> bool:
    """Return whether :func:`one_student` takes logits of a shape."""
    return len(shape) == 2 and shape[0] > 0 and 0 < shape[1] <= MOST_KEPT // 2


def are_classes(target: Any) -> bool:
    """Return whether a target may be classes, which :func:`one_student` takes."""
    return type(target) is Tensor and target.is_cpu and target.dtype is torch.int64


_logits_both = direct("logits_both")


def one_student(arguments: tuple[Tensor | None, Tensor, int], teacher: Tensor, student: Tensor) -> Any:
    """Return the total, with a target ``(total, ce, kl)``, of a student that learns: of small losses, in fewer steps.

    ``arguments`` are those of ``logits_both`` after the students, up to its flags.

    Raises:
        Refused: The op refused its arguments.
    """
    terms = _AT_ONCE.attempt(torch.ops.sftn_fast, teacher, (student,), *arguments)
    if terms is None:
        return _OneStudent.apply(arguments, teacher, student)
    if terms is NotImplemented:
        raise Refused
    if arguments[0] is None:
        return terms
    total, _, ce, kl = terms
    return total, ce, kl


class _OneStudent(AtOnce):
    """:func:`one_student` in Python: steps are half of its cost."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, arguments: tuple[Tensor | None, Tensor, int], teacher: Tensor, student: Tensor
    ) -> Tensor | tuple[Tensor, ...]:
        _, teacher_wanted, _ = ctx.needs_input_grad
        try:
            results = _logits_both(teacher, (student,), *arguments, teacher_wanted, True)
        except Exception as error:
            raise Refused from error
        if teacher_wanted:
            ctx.save_for_backward(teacher, student, *results[-2:])
        else:
            ctx.save_for_backward(student, results[-1])
        ctx.set_materialize_grads(False)
        if arguments[0] is None:
            return results[0]
        total, _, ce, kl = results[:4]
        ctx.mark_non_differentiable(ce, kl)
        return total, ce, kl

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_total is None:
            return None, None, None
        grads = kept_gradients(ctx.saved_tensors, grad_total)
        return (None, None, *grads) if len(grads) == 1 else (None, *grads)


class _InTwoPasses(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor | None, teacher: Tensor, *students: Tensor
    ) -> tuple[Tensor, Tensor]:
        total, parts, stats = _call(ops.logits_forward, options, target, teacher, students, *options)
        ctx.save_for_backward(teacher, *students, target, parts, stats)
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
    teacher, *students, target, parts, stats = saved
    _, _, _, teacher_wanted, *wanted = ctx.needs_input_grad
    grads = ctx.ops.logits_backward(
        grad_total, teacher, students, target, parts, stats, *ctx.options, teacher_wanted, True in wanted
    )
    return in_places(_of_wanted(grads, teacher_wanted, wanted), (teacher_wanted, *wanted))


@register_fake("logits_both")
def _(teacher: Tensor, students: Sequence[Tensor], target: Tensor | None, *rest: Any) -> list[Tensor]:
    dtype = accumulator(teacher)
    teacher_wanted, students_wanted = rest[-2:]
    terms = [teacher.new_empty((), dtype=dtype) for _ in range(1 if target is None else 4)]
    count = int(teacher_wanted) + len(students) * int(students_wanted)
    return [*terms, *[teacher.new_empty(teacher.shape, dtype=dtype) for _ in range(count)]]


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
