"""Another project's kernel for comparison: Liger-Kernel's divergence in Triton, if installed. For CUDA only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def kd_with_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return KD by Liger's kernel with PyTorch's cross-entropy; Liger's writes its gradient into the logits."""
    from liger_kernel.transformers import LigerKLDIVLoss

    divergence = LigerKLDIVLoss(reduction="batchmean")

    def loss() -> Tensor:
        kd = divergence(F.log_softmax(student / 4.0, dim=1), F.softmax(teacher / 4.0, dim=1)) * 16.0
        return 0.1 * F.cross_entropy(student, target) + 0.9 * kd

    return loss
