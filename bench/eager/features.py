"""The losses between feature maps as written by their authors or by RepDistiller."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---- elementwise: hint, AB, OH, VID ----


class HintLoss(nn.MSELoss):
    """RepDistiller's, after its regressor."""


class ABLoss(nn.Module):
    """RepDistiller's and the authors' for one layer: both sides of the boundary, each with its mask."""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        inactive = (student + self.margin).pow(2) * ((student > -self.margin) & (teacher <= 0)).float()
        active = (student - self.margin).pow(2) * ((student <= self.margin) & (teacher > 0)).float()
        return (inactive + active).sum() / student.shape[0]


class OHLoss(nn.Module):
    """The authors' for one layer: the margin ReLU, then the distance with its mask."""

    def forward(self, student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
        target = torch.max(teacher, margin[None, :, None, None])
        distance = F.mse_loss(student, target, reduction="none")
        return (distance * ((student > target) | (target > 0)).float()).sum() / student.shape[0]


class VIDLoss(nn.Module):
    """RepDistiller's after its regressor, with the learned variance of each channel."""

    def __init__(self, channels: int, initial_variance: float = 5.0, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.log_scale = nn.Parameter(torch.full((channels,), math.log(math.exp(initial_variance - eps) - 1)))

    def forward(self, mean: Tensor, teacher: Tensor) -> Tensor:
        variance = torch.log(1 + torch.exp(self.log_scale)) + self.eps
        variance = variance.view(1, -1, 1, 1)
        return torch.mean(0.5 * ((mean - teacher) ** 2 / variance + torch.log(variance)))


# ---- attention and factors ----


class Attention(nn.Module):
    """AT of one stage as in RepDistiller."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _pooled_alike(student, teacher)
        return (_attention(student) - _attention(teacher)).pow(2).mean()


class FactorTransfer(nn.Module):
    """FT as in RepDistiller."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _pooled_alike(student, teacher)
        return (_attention(student) - _attention(teacher)).abs().mean()


class PaperFactorTransfer(nn.Module):
    """FT as in the authors' code."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        return F.l1_loss(F.normalize(student.flatten(1)), F.normalize(teacher.flatten(1)))


def _attention(features: Tensor) -> Tensor:
    return F.normalize(features.pow(2).mean(1).view(features.size(0), -1))


def _pooled_alike(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    student_height, teacher_height = student.shape[2], teacher.shape[2]
    if student_height > teacher_height:
        student = F.adaptive_avg_pool2d(student, (teacher_height, teacher_height))
    elif student_height < teacher_height:
        teacher = F.adaptive_avg_pool2d(teacher, (student_height, student_height))
    return student, teacher


# ---- behind a BatchNorm ----


class HintBehindBatchNorm(nn.Module):
    """RepDistiller's regressor without its convolution, and its hint loss."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn, self.relu, self.loss = nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.MSELoss()

    def forward(self, features: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(self.relu(self.bn(features)), teacher)
