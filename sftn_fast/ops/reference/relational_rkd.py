"""Relational distillation (RKD), in plain PyTorch. See :mod:`sftn_fast.ops.relational_rkd` for the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._dtype import widened, without_autocast
from sftn_fast.ops.terms import RKDTerms

TINY = torch.finfo(torch.float32).tiny
"""Least ``eps`` in use. Smaller float32 numbers lose digits or are zero."""


def rkd_distance_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Compute :func:`sftn_fast.ops.rkd_distance_loss` in plain PyTorch."""
    return _distance(*_differences(student, teacher), eps)


def rkd_angle_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Compute :func:`sftn_fast.ops.rkd_angle_loss` in plain PyTorch."""
    return _angle(*_differences(student, teacher), eps)


def rkd_loss(
    student: Tensor, teacher: Tensor, *, distance_weight: float = 25.0, angle_weight: float = 50.0
) -> RKDTerms:
    """Compute :func:`sftn_fast.ops.rkd_loss` in plain PyTorch."""
    differences = _differences(student, teacher)
    distance, angle = _distance(*differences, 1e-12), _angle(*differences, 1e-12)
    return RKDTerms(distance_weight * distance + angle_weight * angle, distance.detach(), angle.detach())


def _differences(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x_j - x_i`` at ``[i, j]`` for each network, ``[B, B, D]``, in float32 or float64."""
    student, teacher = widened(student, teacher)
    return student[None, :] - student[:, None], teacher[None, :] - teacher[:, None]


def _distance(student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    return _mean_smooth_l1(_relative_distances(student, eps), _relative_distances(teacher, eps))


def _relative_distances(difference: Tensor, eps: float) -> Tensor:
    """Return distances ``[B, B]``, divided by their mean over pairs of two different rows."""
    b = difference.shape[0]
    itself = torch.eye(b, dtype=torch.bool, device=difference.device)
    distance = difference.square().sum(2).clamp(min=max(eps, TINY)).sqrt().masked_fill(itself, 0)
    mean = distance.sum() / max(b * (b - 1), 1)
    return distance / mean.clamp(min=TINY)


def _angle(student: Tensor, teacher: Tensor, eps: float) -> Tensor:
    return _mean_smooth_l1(_cosines(student, eps), _cosines(teacher, eps))


def _cosines(difference: Tensor, eps: float) -> Tensor:
    """Return the cosines at vertex i between the directions to j and to k, ``[i, j, k]``."""
    length = torch.linalg.vector_norm(difference, dim=2, keepdim=True)
    # F.normalize would multiply the gradient of a difference of zero by 1 / eps.
    unit = difference * torch.where(length == 0, 0, 1 / length.clamp(min=max(eps, TINY)))
    with without_autocast(unit.device.type):
        return unit @ unit.transpose(1, 2)


def _mean_smooth_l1(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(student, teacher, reduction="sum") / max(student.numel(), 1)
