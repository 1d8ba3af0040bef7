"""Correlation congruence as RepDistiller has it from its author. Plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.nn.precision import in_float32


class CorrelationLoss(nn.Module):
    """Products of neighbouring samples' distances to the teacher (Peng et al., ICCV 2019, as in RepDistiller).

    ``mean_b sum_d |s - t|_bd |s - t|_(b+1)d`` over neighbours in the batch; 0 for a batch of one.
    """

    @in_float32
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Embeddings ``[B, D]``; 0-dim float32, or float64 for float64 embeddings."""
        width = student.shape[1]
        distance = (student - teacher).abs().flatten()
        # Each row against the next, in one product that is never stored.
        return torch.dot(distance[:-width], distance[width:]) / max(len(student) - 1, 1)
