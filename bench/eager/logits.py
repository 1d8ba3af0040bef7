"""The losses on logits as in RepDistiller and the SFTN paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class DistillKL(nn.Module):
    """KD as in RepDistiller, with `reduction="sum"` for `size_average=False`, which PyTorch has since renamed."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student_log = F.log_softmax(student / self.temperature, dim=1)
        teacher_prob = F.softmax(teacher / self.temperature, dim=1)
        return F.kl_div(student_log, teacher_prob, reduction="sum") * self.temperature**2 / student.shape[0]


class KDWithCrossEntropy(nn.Module):
    """RepDistiller's weighted sum of both."""

    def __init__(self) -> None:
        super().__init__()
        self.kd, self.ce = DistillKL(4.0), nn.CrossEntropyLoss()

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        return 0.1 * self.ce(student, target) + 0.9 * self.kd(student, teacher)


class SFTN(nn.Module):
    """The loss of a student-friendly teacher, term by term."""

    def __init__(self) -> None:
        super().__init__()
        self.kl, self.ce = DistillKL(1.0), nn.CrossEntropyLoss()

    def forward(self, teacher: Tensor, branches: Sequence[Tensor], target: Tensor) -> Tensor:
        branch_ce = sum(self.ce(branch, target) for branch in branches) / len(branches)
        branch_kl = sum(self.kl(branch, teacher) for branch in branches) / len(branches)
        return self.ce(teacher, target) + branch_ce + 3.0 * branch_kl
