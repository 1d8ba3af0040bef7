"""WKD: the cost of transporting the student's probabilities of the other classes to the teacher's."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sftn_fast.ops import reference
from sftn_fast.ops import validation as check
from sftn_fast.ops._checking import checked


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


def _check_cost(cost: Any, logits: Tensor) -> None:
    check.check_floating("cost", cost)
    num_classes = logits.shape[1]
    if cost.shape != (num_classes, num_classes):
        raise ValueError(f"cost must be [C, C] = {[num_classes, num_classes]}, got {list(cost.shape)}")
    check.check_same_device("cost", cost, "student_logits", logits)
