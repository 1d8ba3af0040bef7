"""The losses on logits as in RepDistiller and the SFTN paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
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


class DIST(nn.Module):
    """Both correlations at temperature 4, each in one matrix operation after another."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        s, t = ((x / 4.0).softmax(dim=1) for x in (student, teacher))
        inter, intra = 1 - self.correlation(s, t).mean(), 1 - self.correlation(s.t(), t.t()).mean()
        return 4.0**2 * inter + 4.0**2 * intra

    @staticmethod
    def correlation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


class WKD(nn.Module):
    """Transport between the other classes of each image, with a kernel matrix for each image: ``[N, C - 1, C - 1]``."""

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor, cost: Tensor) -> Tensor:
        n, c = student.shape
        others = torch.arange(c, device=target.device).expand(n, c)
        others = others[others != target[:, None]].view(n, c - 1)
        costs = cost[others[:, :, None], others[:, None, :]]
        kernel = torch.exp(-costs / 0.05)
        a, b = ((x.gather(1, others) / 2.0).softmax(1)[:, :, None] for x in (student, teacher))
        u = torch.full_like(a, 1 / (c - 1))
        for _ in range(10):
            v = b / (kernel.transpose(1, 2) @ u + 1e-8)
            u = a / (kernel @ v + 1e-8)
        transport = (u * kernel * v.transpose(1, 2) * costs).sum((1, 2))
        label = -(teacher.softmax(1) * F.log_softmax(student, 1)).gather(1, target[:, None]).squeeze(1)
        return (label + 30.0 * transport).mean()
