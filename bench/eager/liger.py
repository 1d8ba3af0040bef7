"""Another project's kernels for comparison: Liger-Kernel's divergences in Triton, if installed. For CUDA only."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 4.0


def installed() -> bool:
    return importlib.util.find_spec("liger_kernel") is not None


def kd_with_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return KD by Liger's divergences with PyTorch's cross-entropy. Liger's writes its gradient into the logits.

    With beta = 0 the generalised Jensen-Shannon divergence is the Kullback-Leibler divergence from the teacher.
    """
    from liger_kernel.transformers import LigerJSD, LigerKLDIVLoss

    divergence, generalised = LigerKLDIVLoss(reduction="batchmean"), LigerJSD(beta=0.0)

    def student_log() -> Tensor:
        return F.log_softmax(student / TEMPERATURE, dim=1)

    def total(kd: Tensor) -> Tensor:
        return 0.1 * F.cross_entropy(student, target) + 0.9 * TEMPERATURE**2 * kd

    return {
        "liger": lambda: total(divergence(student_log(), F.softmax(teacher / TEMPERATURE, dim=1))),
        "liger, JSD": lambda: total(generalised(student_log(), F.log_softmax(teacher / TEMPERATURE, dim=1))),
    }
