"""The hint loss after a BatchNorm, in plain PyTorch. See :mod:`sftn_fast.ops.features_adaptation` for the formulas."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._autograd import savable
from sftn_fast.ops._dtype import widened, widened_beside


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
    """Compute :func:`sftn_fast.ops.adapted_hint_loss` in plain PyTorch."""
    statistics = running_mean, running_var
    x, teacher = widened(*widened_beside((features, teacher_features), weight, bias, *(() if training else statistics)))
    # F.batch_norm needs one dtype for all of them, and writes to the running statistics it is given.
    mean, var = (None if s is None else s.to(x.dtype) for s in statistics)
    scale, shift = savable(*(None if p is None else p.to(x.dtype) for p in (weight, bias)))
    if not training:
        mean, var = savable(mean, var)
    normalised = F.batch_norm(x, mean, var, scale, shift, training, momentum, eps)
    if training:
        for own, updated in zip(statistics, (mean, var), strict=True):
            if own is not None and updated is not None and own is not updated:
                own.copy_(updated)
    return (F.relu(normalised) - teacher).square().sum() / max(x.numel(), 1)
