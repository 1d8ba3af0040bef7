"""Neuron selectivity transfer: channels as samples of a distribution over pixels. Plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.nn.loss import mean
from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check


class NSTLoss(nn.Module):
    """Squared maximum mean discrepancy of the channels of two maps (Huang & Wang, 2017), polynomial kernel of degree 2.

    The larger map is average-pooled to the smaller one's size. The kernel of two channels is the square of their
    product. A batched matrix product computes it, and nothing larger than ``[N, Cs, Ct]`` is stored.
    """

    @in_float32
    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss of maps ``[N, Cs, H, W]`` and ``[N, Ct, H, W]``; only the student's map gets a gradient.

        Returns 0-dim float32, or float64 for float64 maps.
        """
        check.check_feature_map("student_features", student_features)
        check.check_feature_map("teacher_features", teacher_features)
        check.check_same_batch("teacher_features", teacher_features, "student_features", student_features)
        student, teacher = same_size(student_features, teacher_features.detach())
        student = F.normalize(student.flatten(2), dim=2)
        teacher = F.normalize(teacher.flatten(2), dim=2)
        return _kernel(teacher, teacher) + _kernel(student, student) - 2 * _kernel(student, teacher)


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the higher map to the height and width of the other."""
    if a.shape[2] > b.shape[2]:
        return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
    if a.shape[2] < b.shape[2]:
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    return mean(torch.bmm(a, b.transpose(1, 2)).square())
