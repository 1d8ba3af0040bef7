"""The losses on relations between samples as RepDistiller writes them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
