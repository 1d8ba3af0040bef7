"""Losses on attention maps, in plain PyTorch. See :mod:`sftn_fast.ops.features_attention` for the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops.reference.features_pool import pooled_alike

EPS = 1e-12  # the least norm, as in F.normalize


def at_loss(student_features: Tensor, teacher_features: Tensor, *, p: float = 2) -> Tensor:
    """Compute :func:`sftn_fast.ops.at_loss` in plain PyTorch."""
    student, teacher = pooled_alike(student_features, teacher_features)
    return _mean((attention(student, p) - attention(teacher, p)).square())


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, *, variant: str = "repdistiller") -> Tensor:
    """Compute :func:`sftn_fast.ops.ft_loss` in plain PyTorch."""
    student, teacher = pooled_alike(student_factor, teacher_factor)
    unit = attention if variant == "repdistiller" else unit_factor
    return _mean((unit(student) - unit(teacher)).abs())


def attention(features: Tensor, p: float = 2) -> Tensor:
    """Return attention ``[N, H * W]``: the channel mean of ``|f|^p`` at each pixel, with norm 1 for each sample."""
    if p == 2:
        powers = features.square()
    else:  # the gradient at 0 is 0, also for a power below 1, where the derivative is infinite
        zero = features == 0
        powers = torch.where(zero, 0.0, torch.where(zero, 1.0, features).abs().pow(p))
    return F.normalize(powers.mean(dim=1).flatten(1), dim=1, eps=EPS)


def unit_factor(factor: Tensor) -> Tensor:
    """Return each sample's factor as a vector of norm 1, ``[N, C * H * W]``."""
    return F.normalize(factor.flatten(1), dim=1, eps=EPS)


def _mean(values: Tensor) -> Tensor:
    """Return the mean, 0 for an empty batch."""
    return values.sum() / max(values.numel(), 1)
