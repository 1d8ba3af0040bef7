"""Elementwise losses between two feature maps, in plain PyTorch.

See :mod:`sftn_fast.ops.features_pointwise` for the formulas.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._dtype import widened
from sftn_fast.ops.reference.features_pool import pooled_alike


def hint_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute :func:`sftn_fast.ops.hint_loss` in plain PyTorch."""
    student, teacher = widened(student_features, teacher_features)
    return (student - teacher).square().sum() / max(student.numel(), 1)


def ab_loss(student_preact: Tensor, teacher_preact: Tensor, *, margin: float = 1.0) -> Tensor:
    """Compute :func:`sftn_fast.ops.ab_loss` in plain PyTorch."""
    student, teacher = widened(student_preact, teacher_preact)
    active = (student - margin).clamp(max=0)
    inactive = (student + margin).clamp(min=0)
    # A NaN of the teacher's matches neither condition and must show in the loss.
    residual = torch.where(teacher > 0, active, torch.where(teacher <= 0, inactive, teacher))
    return residual.square().sum() / max(len(student), 1)


def oh_loss(student_preact: Tensor, teacher_preact: Tensor, margin: Tensor) -> Tensor:
    """Compute :func:`sftn_fast.ops.oh_loss` in plain PyTorch."""
    student, teacher, margin = widened(student_preact, teacher_preact, margin)
    margin = _per_channel(margin, student)
    target = torch.where(teacher <= margin, margin, teacher)
    left_out = (student <= target) & (target <= 0)  # not written as the negation: a NaN must show in the loss
    residual = torch.where(left_out, 0.0, student - target)
    return residual.square().sum() / max(len(student), 1)


def oh_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Compute :func:`sftn_fast.ops.oh_margin` in plain PyTorch."""
    deviation, mean = weight.detach().double().abs(), bias.detach().double()
    # For a deviation of 0 the ratio is 0 or infinite, and the formula still holds.
    ratio = mean / deviation.clamp(min=torch.finfo(torch.float64).tiny)
    negative = torch.special.ndtr(-ratio)
    density = (-0.5 * ratio.square() - 0.5 * math.log(2 * math.pi)).exp()
    margin = torch.where(negative > 0.001, mean - deviation * density / negative, -3 * deviation)
    return margin.to(weight.dtype)


def vid_loss(mean: Tensor, log_scale: Tensor, teacher_features: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Compute :func:`sftn_fast.ops.vid_loss` in plain PyTorch."""
    mean, teacher, log_scale = widened(mean, teacher_features, log_scale)
    mean, teacher = pooled_alike(mean, teacher)
    softplus = -F.logsigmoid(-_per_channel(log_scale, mean))  # F.softplus is off by 2e-9 from 20 on
    variance = softplus + eps
    terms = 0.5 * ((mean - teacher).square() / variance + variance.log())
    return terms.sum() / max(terms.numel(), 1)


def _per_channel(vector: Tensor, features: Tensor) -> Tensor:
    """Reshape ``[C]`` to broadcast over ``[N, C, ...]`` and convert it to the map's dtype."""
    return vector.to(features.dtype).reshape(-1, *[1] * (features.dim() - 2))
