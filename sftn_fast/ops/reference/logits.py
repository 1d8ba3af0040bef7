"""Distillation losses on logits, in plain PyTorch. See :mod:`sftn_fast.ops.logits` for the formulas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops import _dense
from sftn_fast.ops._autograd import savable
from sftn_fast.ops._dtype import widened, widened_beside
from sftn_fast.ops.terms import KDTerms, SFTNTerms
from sftn_fast.ops.validation import check_classes

NEAR = 0.5
"""Largest difference of two rows of logits / T, less its mean, for which KL is computed by a polynomial."""


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    reduction: str = "batchmean",
    standardize: bool = False,
) -> Tensor:
    """Compute :func:`sftn_fast.ops.kd_loss` in plain PyTorch."""
    if student_logits.dim() != 2:
        return _dense.kd_loss(
            kd_loss, student_logits, teacher_logits, temperature, reduction=reduction, standardize=standardize
        )
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    if isinstance(temperature, Tensor):
        temperature = tensor_as(student_logits, temperature)
    if standardize:
        student_logits, teacher_logits = standardized(student_logits), standardized(teacher_logits)
    rows = temperature**2 * _kl_rows(teacher_logits, student_logits, temperature)
    if reduction == "none":
        return rows
    return rows.sum() / (max(len(rows), 1) if reduction == "batchmean" else 1)


def kd_ce_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    target: Tensor,
    temperature: float | Tensor = 4.0,
    *,
    kd_weight: float = 0.9,
    ce_weight: float = 0.1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    standardize: bool = False,
) -> KDTerms:
    """Compute :func:`sftn_fast.ops.kd_ce_loss` in plain PyTorch."""
    if student_logits.dim() != 2:
        return _dense.kd_ce_loss(
            kd_ce_loss,
            student_logits,
            teacher_logits,
            target,
            temperature,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            standardize=standardize,
        )
    student_logits, teacher_logits = widened_beside(tuple(widened(student_logits, teacher_logits)), target)
    kd = kd_loss(student_logits, teacher_logits, temperature, standardize=standardize)
    ce = cross_entropy(student_logits, target, ignore_index, label_smoothing)
    return KDTerms(kd_weight * kd + ce_weight * ce, kd.detach(), ce.detach())


def sftn_loss(
    teacher_logits: Tensor,
    branch_logits: Sequence[Tensor] | Tensor,
    target: Tensor,
    temperature: float = 1.0,
    *,
    teacher_weight: float = 1.0,
    ce_weight: float = 1.0,
    kl_weight: float = 3.0,
    direction: str = "teacher_to_branch",
    branch_reduction: str = "mean",
) -> SFTNTerms:
    """Compute :func:`sftn_fast.ops.sftn_loss` in plain PyTorch."""
    teacher_logits, *branches = widened_beside(tuple(widened(teacher_logits, *branch_logits)), target)
    teacher_ce = cross_entropy(teacher_logits, target)
    branch_ce = torch.stack([cross_entropy(branch, target) for branch in branches]).sum()
    pairs = [(teacher_logits, branch) for branch in branches]
    if direction == "branch_to_teacher":
        pairs = [(branch, teacher) for teacher, branch in pairs]
    kl_rows = torch.stack([_kl_rows(p, q, temperature) for p, q in pairs])
    branch_kl = temperature**2 * kl_rows.sum() / max(len(target), 1)
    if branch_reduction == "mean":
        branch_ce, branch_kl = branch_ce / len(branches), branch_kl / len(branches)
    total = teacher_weight * teacher_ce + ce_weight * branch_ce + kl_weight * branch_kl
    return SFTNTerms(total, teacher_ce.detach(), branch_ce.detach(), branch_kl.detach())


def standardized(logits: Tensor) -> Tensor:
    """Return ``(z - mean) / (std + 1e-7)`` of each row, with the unbiased deviation: 0 for a row of one class."""
    centred = logits - logits.mean(dim=1, keepdim=True)
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) / max(logits.shape[1] - 1, 1) ** 0.5
    return centred / (deviation + 1e-7)


def _kl_rows(p_logits: Tensor, q_logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute ``KL(softmax(p / T) || softmax(q / T))`` of each row, ``[N]``. A probability of 0 contributes nothing."""
    p_scaled, q_scaled = _scaled(p_logits, temperature), _scaled(q_logits, temperature)
    p_log, q_log = F.log_softmax(p_scaled, dim=1), F.log_softmax(q_scaled, dim=1)
    p = p_log.exp()
    far = (p * torch.where(p == 0, 0.0, p_log - q_log)).sum(dim=1)

    # If p and q are near each other, the digits of the logarithms cancel. Compute q_log - p_log from the difference y
    # of the logits instead, and KL as the sum of p (exp(q_log - p_log) - 1 - (q_log - p_log)), each term above 0.
    ruled_out = (p_scaled == -torch.inf) & (q_scaled == -torch.inf)
    y = torch.where(ruled_out, 0.0, q_scaled) - torch.where(ruled_out, 0.0, p_scaled)
    y = y - torch.where(p == 0, 0.0, p * y).sum(dim=1, keepdim=True).detach()
    near = (y.detach().abs() <= NEAR).all(dim=1)
    y = torch.where(near[:, None], y, 0.0)
    log_ratio = y - (p * (y + exp_remainder(y))).sum(dim=1, keepdim=True).log1p()
    return torch.where(near, (p * exp_remainder(log_ratio)).sum(dim=1), far)


def tensor_as(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return the temperature in the logits' dtype, so that it decides none, and that its square fits."""
    return savable(temperature.to(logits.dtype))[0]


def _scaled(logits: Tensor, temperature: float | Tensor) -> Tensor:
    # Subtract the maximum before the division: at temperature 0.05, logits of 1e4 would lose two digits.
    shifted = logits - logits.detach().amax(dim=1, keepdim=True)
    if not isinstance(temperature, Tensor):
        return shifted / temperature
    ruled_out = logits == -torch.inf  # no part of the derivative with respect to the temperature, where 0 * inf is NaN
    return torch.where(ruled_out, -torch.inf, torch.where(ruled_out, 0.0, shifted) / temperature)


def exp_remainder(y: Tensor) -> Tensor:
    """Compute ``exp(y) - 1 - y`` for ``y`` up to about 1/2 by its Taylor polynomial, with derivatives as exact."""
    degree = 18 if y.dtype == torch.float64 else 10
    p = torch.ones_like(y)
    for n in range(degree, 2, -1):
        p = 1 + p * y / n
    return 0.5 * p * y.square()


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean over rows with a target other than ``ignore_index``, 0 if there are none.

    The target is classes ``[N]`` or probabilities ``[N, C]``, of which 0 contributes nothing.
    """
    (target,) = savable(target)
    if target.is_floating_point():
        wanted = (1 - label_smoothing) * target.to(logits.dtype) + label_smoothing / logits.shape[1]
        terms = torch.where(wanted == 0, 0.0, -wanted * logits.log_softmax(dim=1))
        return terms.sum() / max(len(target), 1)
    try:
        total = F.cross_entropy(
            logits, target, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="sum"
        )
    except IndexError:
        check_classes(target, logits.shape[1], ignore_index)
        raise
    valid = target != ignore_index
    if label_smoothing == 1:  # PyTorch multiplies the class's logarithm, which may be infinite, by 0
        total = -torch.where(valid, logits.log_softmax(dim=1).mean(dim=1), 0.0).sum()
    return total / valid.sum().clamp(min=1)
