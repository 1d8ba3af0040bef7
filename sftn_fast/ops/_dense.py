"""Logits of pixels, ``[N, C, d1, ...]``, as rows of the losses on logits: each pixel is a row.

A dense channels-last map is read where it is. Any other layout is copied, once for each map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from sftn_fast.ops.terms import KDTerms


def as_rows(x: Tensor) -> Tensor:
    """Return ``[N, C, d1, ...]`` as ``[N * d1 * ..., C]``."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def kd_loss(
    loss: Callable[..., Tensor], student: Tensor, teacher: Tensor, *args: Any, reduction: str, **options: Any
) -> Tensor:
    """Return ``loss``, the distillation loss of rows, of the pixels of both maps."""
    over_rows = "none" if reduction == "none" else "sum"
    result = loss(as_rows(student), as_rows(teacher), *args, reduction=over_rows, **options)
    if reduction == "none":
        return result.reshape(student.shape[:1] + student.shape[2:])
    return result / max(student.shape[0], 1) if reduction == "batchmean" else result


def kd_ce_loss(
    loss: Callable[..., KDTerms],
    student: Tensor,
    teacher: Tensor,
    target: Tensor,
    *args: Any,
    kd_weight: float,
    **options: Any,
) -> KDTerms:
    """Return the terms of ``loss``, the distillation loss with cross-entropy of rows, of the pixels of both maps."""
    rows = as_rows(target) if target.is_floating_point() else target.reshape(-1)
    pixels = math.prod(student.shape[2:])  # of an image; the loss divides by the number of rows, not by that of images
    weight = kd_weight * pixels
    terms = loss(as_rows(student), as_rows(teacher), rows, *args, kd_weight=weight, **options)
    return KDTerms(terms.total, terms.kd * pixels, terms.ce)
