"""The losses on relations within a batch as in RepDistiller."""

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
    """PKT, with in-place operations as in RepDistiller."""

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


class RKD(nn.Module):
    """Relational distillation with RepDistiller's weights: Gram matrices for distances, [B, B, D] for angles."""

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_distance, teacher_angle = self.distances(teacher), self.angles(teacher)
        distance = F.smooth_l1_loss(self.distances(student), teacher_distance)
        angle = F.smooth_l1_loss(self.angles(student), teacher_angle)
        return self.distance_weight * distance + self.angle_weight * angle

    @staticmethod
    def distances(rows: Tensor) -> Tensor:
        squares = rows.pow(2).sum(dim=1)
        squared = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.t()).clamp(min=1e-12)
        distance = squared.sqrt().clone()
        distance[range(len(rows)), range(len(rows))] = 0
        return distance / distance[distance > 0].mean()

    @staticmethod
    def angles(rows: Tensor) -> Tensor:
        direction = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), p=2, dim=2)
        return torch.bmm(direction, direction.transpose(1, 2)).view(-1)
