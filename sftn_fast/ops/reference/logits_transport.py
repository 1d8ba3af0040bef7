"""The Wasserstein loss on logits in plain PyTorch. See :mod:`sftn_fast.ops.logits_transport` for the formula."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._dtype import widened, without_autocast
from sftn_fast.ops.reference.logits import _scaled
from sftn_fast.ops.validation import check_classes

EPS = 1e-8
"""What is added to the divisors of the iterations, as in the authors' code."""


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
    """Compute :func:`sftn_fast.ops.wkd_loss` in plain PyTorch."""
    student_logits, teacher_logits, cost = widened(student_logits, teacher_logits, cost)
    is_target = _one_hot(target, student_logits.shape[1])
    source, sink = (_other_classes(x, is_target, temperature) for x in (student_logits, teacher_logits))
    with without_autocast(student_logits.device.type):
        transport = _transport(source, sink, is_target, cost, regularization, iterations)
    rows = _target_rows(student_logits, teacher_logits, is_target) + gamma * transport
    return rows.sum() / max(len(rows), 1)


def _one_hot(target: Tensor, num_classes: int) -> Tensor:
    """Return a mask ``[N, C]`` of the targets."""
    nowhere = torch.zeros(len(target), num_classes, dtype=torch.bool, device=target.device)
    try:
        return nowhere.scatter(1, target[:, None], True)
    except RuntimeError:
        check_classes(target, num_classes)
        raise


def _other_classes(logits: Tensor, is_target: Tensor, temperature: float) -> Tensor:
    """Return the probabilities of the classes other than the target, ``[N, C]``, all 0 if these are all at -inf."""
    others = logits.masked_fill(is_target, -torch.inf)
    impossible = others.detach().amax(1, keepdim=True) == -torch.inf
    others = _scaled(others.masked_fill(impossible, 0.0), temperature).softmax(1)
    return others.masked_fill(impossible, 0.0)


def _transport(
    source: Tensor, sink: Tensor, is_target: Tensor, cost: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Return the cost of the transport plan of each row, ``[N]``."""
    kernel = (cost / -regularization).exp()
    u = (~is_target).to(source.dtype) / max(source.shape[1] - 1, 1)
    v = u
    for _ in range(iterations):
        v = sink / (u @ kernel + EPS)
        u = source / (v @ kernel.t() + EPS)
    return (u * (v @ (kernel * cost).t())).sum(1)


def _target_rows(student_logits: Tensor, teacher_logits: Tensor, is_target: Tensor) -> Tensor:
    """Return ``-p_t(y) log p_s(y)``, 0 where ``p_t(y)`` is 0, ``[N]``."""
    student, teacher = (F.log_softmax(_scaled(x, 1.0), dim=1) for x in (student_logits, teacher_logits))
    counted = is_target & ~(teacher.detach() == -torch.inf)
    return -(teacher.exp() * student.masked_fill(~counted, 0.0)).sum(1)
