"""Adaptive average pooling of two maps to one size, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._dtype import widened, without_autocast


def pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average the map with more pixels down to the other's height and width; return both in float32 or float64."""
    student, teacher = widened(student, teacher)
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    if student.shape[2:].numel() > teacher.shape[2:].numel():
        return _pooled(student, teacher.shape[2], teacher.shape[3]), teacher
    return student, _pooled(teacher, student.shape[2], student.shape[3])


def _pooled(features: Tensor, height: int, width: int) -> Tensor:
    """Compute ``F.adaptive_avg_pool2d``. On a GPU PyTorch sums its gradient in no fixed order; this one's is fixed."""
    old_height, old_width = features.shape[2:]
    if old_height % height == 0 and old_width % width == 0:
        return F.avg_pool2d(features, (old_height // height, old_width // width))
    with without_autocast(features.device.type):
        return _averages(old_height, height, features) @ features @ _averages(old_width, width, features).t()


def _averages(size: int, bins: int, like: Tensor) -> Tensor:
    """Return the matrix ``[bins, size]`` that averages over the bins of adaptive pooling, which may overlap."""
    place, bin_ = torch.arange(size, device=like.device), torch.arange(bins, device=like.device)[:, None]
    inside = (place >= bin_ * size // bins) & (place < ((bin_ + 1) * size + bins - 1) // bins)
    return inside.to(like.dtype) / inside.sum(dim=1, keepdim=True)
