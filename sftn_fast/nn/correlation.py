"""Correlation congruence, as in RepDistiller. Plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check


class CorrelationLoss(nn.Module):
    """Product of the distances to the teacher of neighbouring samples (Peng et al., ICCV 2019, as in RepDistiller).

    The loss is ``mean_b sum_d |s - t|_bd |s - t|_(b+1)d`` over neighbours in the batch, and 0 for a batch of one.
    """

    @in_float32
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of embeddings ``[B, D]``: 0-dim float32, or float64 for float64 embeddings."""
        check.check_embedding("student", student)
        check.check_embedding("teacher", teacher)
        check.check_like("teacher", teacher, "student", student)
        width = student.shape[1]
        distance = (student - teacher).abs().flatten()
        # One dot product of each row with the next; the elementwise product is never stored.
        return torch.dot(distance[:-width], distance[width:]) / max(len(student) - 1, 1)
