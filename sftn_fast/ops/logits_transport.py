"""WKD: the cost of transporting the student's probabilities of the other classes to the teacher's.

PyTorch computes the matrix products of the iterations. What is between them are the raw ops of
``csrc/logits_transport.h``, which has their formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import Saved, first_derivatives, in_places, needs_function, savable
from sftn_fast.ops._backend import kernels
from sftn_fast.ops._checking import checked
from sftn_fast.ops._dtype import accumulator, same_dtype, widened_beside, without_autocast
from sftn_fast.ops._library import register_fake


def wkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    cost: Tensor,
    temperature: float = 2.0,
    *,
    gamma: float = 30.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    """Compute Wasserstein distillation of logits, WKD-L (Lv et al., NeurIPS 2024), without its cross-entropy.

    The loss is the mean over images of ``-p_t(y) log p_s(y) + gamma W(a, b)``. ``p`` is the softmax at temperature 1.
    ``a`` and ``b`` are those of student and teacher at temperature ``T`` over the classes other than the target ``y``.
    ``W = sum_ij u_i K_ij v_j cost_ij`` with ``K = exp(-cost / regularization)``. It follows ``iterations`` steps
    ``v = b / (K^T u + 1e-8)``, ``u = a / (K v + 1e-8)`` that start with ``u = 1 / (C - 1)``. The gradient flows through
    all of them.

    An empty batch gives 0. A single class has no transport, nor has an image of which one network rules out all other
    classes by logits of ``-inf``.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``. Receives a gradient too if it requires one.
        target: ``[N]`` int64 classes.
        cost: ``[C, C]``, of moving probability from a class of the student (row) to one of the teacher (column); at
            least 0. A constant.
        temperature: ``T`` of ``a`` and ``b``, from 1e-12 to 1e12.
        gamma: weight of the transport.
        regularization: of the transport plan's entropy.
        iterations: number of steps.

    Returns:
        0-dim; float32, or float64 if the logits or the cost are float64.

    Raises:
        TypeError: for an argument of the wrong type or dtype.
        ValueError: for a wrong shape, device or value, and for a cost that requires a gradient. A class out of range
            raises on the CPU only. On a GPU it is a device-side assertion, as in ``F.cross_entropy``.
    """
    if checked():
        check.check_logits_pair("student_logits", student_logits, "teacher_logits", teacher_logits)
        check.check_target(target, student_logits)
        _check_cost(cost, student_logits)
        check.check_temperature(temperature)
        check.check_finite("gamma", gamma)
        check.check_positive("regularization", regularization)
        check.check_size("iterations", iterations)
    check.check_constant("cost", cost)
    ops = kernels(student_logits.device.type)
    if ops is None:
        return reference.wkd_loss(
            student_logits,
            teacher_logits,
            target,
            cost,
            temperature,
            gamma=gamma,
            regularization=regularization,
            iterations=iterations,
        )
    options = Options(float(temperature), float(gamma), float(regularization), int(iterations))
    student, teacher = same_dtype(widened_beside((student_logits, teacher_logits), cost))
    if needs_function((student, teacher)):
        return _WKDLoss.apply(ops, options, *savable(target, cost, student, teacher))
    return _forward(ops, options, target, cost, student, teacher).loss


def _check_cost(cost: Any, logits: Tensor) -> None:
    check.check_floating("cost", cost)
    num_classes = logits.shape[1]
    if cost.shape != (num_classes, num_classes):
        raise ValueError(f"cost must be [C, C] = {[num_classes, num_classes]}, got {list(cost.shape)}")
    check.check_same_device("cost", cost, "student_logits", logits)


class Options(NamedTuple):
    """Scalars of the loss."""

    temperature: float
    gamma: float
    regularization: float
    iterations: int


class Transport(NamedTuple):
    """What the forward pass leaves."""

    loss: Tensor
    kernel: Tensor  # K
    product: Tensor  # of the last v and the costs: the derivative of the transport along the last u
    sinks: list[Tensor]  # v of each iteration
    sources: list[Tensor]  # u of each iteration


def _forward(ops: Any, options: Options, target: Tensor, cost: Tensor, student: Tensor, teacher: Tensor) -> Transport:
    source, sink, rows = _marginals(ops, options, target, student, teacher)
    num_classes = student.shape[1]
    with without_autocast(student.device.type):
        cost = cost.to(source.dtype)
        kernel = (cost / -options.regularization).exp_()
        u = torch.full_like(source, 1 / max(num_classes - 1, 1)).scatter_(1, target[:, None], 0.0)
        sinks, sources = [], []
        for _ in range(options.iterations):
            sinks.append(ops.wkd_step(sink, u @ kernel))
            u = ops.wkd_step(source, sinks[-1] @ kernel.t())
            sources.append(u)
        product = sinks[-1] @ (kernel * cost).t()
        loss = ops.wkd_loss(u, product, rows, options.gamma)
    return Transport(loss, kernel, product, sinks, sources)


def _marginals(
    ops: Any, options: Options, target: Tensor, student: Tensor, teacher: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    try:
        return ops.wkd_marginals(student, teacher, target, options.temperature)
    except RuntimeError:
        check.check_classes(target, student.shape[1])
        raise


class _WKDLoss(torch.autograd.Function):
    """WKD's autograd. It saves ``u`` and ``v`` of each iteration: a product is dearer than a matrix ``[N, C]``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, ops: Any, options: Options, target: Tensor, cost: Tensor, student: Tensor, teacher: Tensor
    ) -> Tensor:
        left = _forward(ops, options, target, cost, student, teacher)
        ctx.save_for_backward(target, cost, student, teacher, left.kernel, left.product, *left.sinks, *left.sources)
        ctx.ops, ctx.options = ops, options
        ctx.set_materialize_grads(False)
        return left.loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if grad_loss is None:
            return (None,) * 6
        return None, None, None, None, *first_derivatives(_backward, ctx, grad_loss)


def _backward(ctx: Any, grad_loss: Tensor, saved: Saved) -> list[Tensor | None]:
    """Return the gradients of student and teacher, None where none is wanted."""
    target, cost, student, teacher, kernel, product, *steps = saved
    ops, options = ctx.ops, ctx.options
    sinks, sources = steps[: options.iterations], steps[options.iterations :]
    source, sink, rows = _marginals(ops, options, target, student, teacher)
    wanted = ctx.needs_input_grad[-2:]
    with without_autocast(student.device.type):
        grad_v = sources[-1] @ (kernel * cost.to(kernel.dtype))
        sums = _reverse(ops, source, sink, kernel, product, grad_v, sinks, sources, of_sink=wanted[1])
    scalars = options.temperature, options.gamma
    grads = ops.wkd_gradient(grad_loss, student, teacher, target, source, sink, rows, *sums, *scalars, *wanted)
    return in_places(grads, wanted)


def _reverse(
    ops: Any,
    source: Tensor,
    sink: Tensor,
    kernel: Tensor,
    grad_u: Tensor,
    grad_v: Tensor,
    sinks: Sequence[Tensor],
    sources: Sequence[Tensor],
    *,
    of_sink: bool,
) -> tuple[Tensor, Tensor]:
    """Go through the iterations from the last to the first.

    Args:
        grad_u: the derivative of the transport along the last ``u``, as far as that is a factor of it.
        grad_v: the same of the last ``v``.
        of_sink: whether the second result is wanted. The first ``v`` is a constant otherwise.

    Returns:
        The marginals ``[N, C]``, ``source`` and ``sink``, each times the derivative of the transport along it.
    """
    source_sum: Tensor | None = None
    sink_sum: Tensor | None = None
    last = len(sinks) - 1
    for number in range(last, -1, -1):
        grad_product, source_sum = ops.wkd_reverse(source, sources[number], grad_u, source_sum)
        if number == 0 and not of_sink:
            break
        grad_v = torch.addmm(grad_v, grad_product, kernel) if number == last else grad_product @ kernel
        grad_product, sink_sum = ops.wkd_reverse(sink, sinks[number], grad_v, sink_sum)
        if number > 0:
            grad_u = grad_product @ kernel.t()
    assert source_sum is not None
    return source_sum, source_sum if sink_sum is None else sink_sum


@register_fake("wkd_marginals")
def _(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulator(student)
    source, sink = (student.new_empty(student.shape, dtype=dtype) for _ in range(2))
    return source, sink, student.new_empty((student.shape[0], 2), dtype=dtype)


@register_fake("wkd_step")
def _(marginal: Tensor, product: Tensor) -> Tensor:
    return marginal.new_empty(marginal.shape)


@register_fake("wkd_loss")
def _(value: Tensor, *_: Any) -> Tensor:
    return value.new_empty(())


@register_fake("wkd_reverse")
def _(marginal: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return marginal.new_empty(marginal.shape), marginal.new_empty(marginal.shape)


@register_fake("wkd_gradient")
def _(grad_loss: Tensor, student: Tensor, *rest: Any) -> list[Tensor]:
    return [student.new_empty(student.shape) for wanted in rest[-2:] if wanted]
