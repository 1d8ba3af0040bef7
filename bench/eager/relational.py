"""The losses on relations within a batch as RepDistiller writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Similarity(nn.Module):
    """SP."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        batch = student.shape[0]
        difference = self.rows(teacher) - self.rows(student)
        return (difference * difference).view(-1, 1).sum(0).sum() / (batch * batch)

    @staticmethod
    def rows(features: Tensor) -> Tensor:
        flat = features.view(features.shape[0], -1)
        return F.normalize(torch.mm(flat, torch.t(flat)))


class PKT(nn.Module):
    """PKT, in place where RepDistiller is."""

    def forward(self, student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
        p_student, p_teacher = self.probabilities(student, eps), self.probabilities(teacher, eps)
        return torch.mean(p_teacher * torch.log((p_teacher + eps) / (p_student + eps)))

    @staticmethod
    def probabilities(embedding: Tensor, eps: float) -> Tensor:
        norm = torch.sqrt(torch.sum(embedding**2, dim=1, keepdim=True))
        unit = embedding / (norm + eps)
        unit[unit != unit] = 0
        similarity = (torch.mm(unit, unit.transpose(0, 1)) + 1.0) / 2.0
        return similarity / torch.sum(similarity, dim=1, keepdim=True)
