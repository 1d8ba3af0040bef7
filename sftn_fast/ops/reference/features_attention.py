"""Losses on attention maps, in plain PyTorch. See :mod:`sftn_fast.ops.features_attention` for what they compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-12  # below which a norm counts as this, F.normalize's own


def at_loss(student_features: Tensor, teacher_features: Tensor, *, p: float = 2) -> Tensor:
    """Reference of :func:`sftn_fast.ops.at_loss`."""
    student, teacher = pooled_alike(student_features, teacher_features)
    return _mean((attention(student, p) - attention(teacher, p)).square())


def ft_loss(student_factor: Tensor, teacher_factor: Tensor, *, variant: str = "repdistiller") -> Tensor:
    """Reference of :func:`sftn_fast.ops.ft_loss`."""
    student, teacher = pooled_alike(student_factor, teacher_factor)
    unit = attention if variant == "repdistiller" else unit_factor
    return _mean((unit(student) - unit(teacher)).abs())


def attention(features: Tensor, p: float = 2) -> Tensor:
    """Where a network looks: the channels' mean of ``|f|^p`` at each pixel, of norm 1 a sample. ``[N, H * W]``."""
    if p == 2:
        powers = features.square()
    else:  # the slope at 0 is 0, where that of a power below 1 is infinite
        zero = features == 0
        powers = torch.where(zero, 0.0, torch.where(zero, 1.0, features).abs().pow(p))
    return F.normalize(powers.mean(dim=1).flatten(1), dim=1, eps=EPS)


def unit_factor(factor: Tensor) -> Tensor:
    """All of a sample's factor as a vector of norm 1: ``[N, C * H * W]``."""
    return F.normalize(factor.flatten(1), dim=1, eps=EPS)


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or float64, the map of more pixels averaged down to the height and width of the other."""
    dtype = torch.float64 if torch.float64 in (student.dtype, teacher.dtype) else torch.float32
    student, teacher = student.to(dtype), teacher.to(dtype)
    if student.shape[2:].numel() > teacher.shape[2:].numel():
        return _pooled(student, teacher.shape[2], teacher.shape[3]), teacher
    return student, _pooled(teacher, student.shape[2], student.shape[3])


def _pooled(features: Tensor, height: int, width: int) -> Tensor:
    """``F.adaptive_avg_pool2d``, whose own gradient adds up in no fixed order on a GPU."""
    old_height, old_width = features.shape[2:]
    if (old_height, old_width) == (height, width):
        return features
    if old_height % height == 0 and old_width % width == 0:
        return F.avg_pool2d(features, (old_height // height, old_width // width))
    with torch.autocast(features.device.type, enabled=False):
        return _averages(old_height, height, features) @ features @ _averages(old_width, width, features).t()


def _averages(size: int, bins: int, like: Tensor) -> Tensor:
    """``[bins, size]``, the matrix that averages over adaptive pooling's bins, which may overlap."""
    place, bin_ = torch.arange(size, device=like.device), torch.arange(bins, device=like.device)[:, None]
    inside = (place >= bin_ * size // bins) & (place < ((bin_ + 1) * size + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)


def _mean(values: Tensor) -> Tensor:
    """The mean, 0 of an empty batch."""
    return values.sum() / max(values.numel(), 1)
