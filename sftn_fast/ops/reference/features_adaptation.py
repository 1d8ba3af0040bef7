"""Hint loss behind a BatchNorm, in plain PyTorch. See :mod:`sftn_fast.ops.features_adaptation` for what it computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def adapted_hint_loss(
    features: Tensor,
    teacher_features: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Reference of :func:`sftn_fast.ops.adapted_hint_loss`."""
    double = torch.float64 in (features.dtype, teacher_features.dtype)
    dtype = torch.float64 if double else torch.float32
    x, teacher = features.to(dtype), teacher_features.to(dtype)
    statistics = running_mean, running_var
    # F.batch_norm wants them all in one dtype, and writes to the running statistics that it is given.
    mean, var = (None if s is None else s.to(dtype) for s in statistics)
    scale, shift = (None if p is None else p.to(dtype) for p in (weight, bias))
    normalised = F.batch_norm(x, mean, var, scale, shift, training, momentum, eps)
    if training:
        for own, updated in zip(statistics, (mean, var), strict=True):
            if own is not None and updated is not None and own is not updated:
                own.copy_(updated)
    return (F.relu(normalised) - teacher).square().sum() / max(x.numel(), 1)
