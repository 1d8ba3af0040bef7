"""The losses on feature maps as RepDistiller, which most papers take them from, or their authors write them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# ---- attention and factors ----


class Attention(nn.Module):
    """AT of one stage as RepDistiller has it."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _pooled_alike(student, teacher)
        return (_attention(student) - _attention(teacher)).pow(2).mean()


class FactorTransfer(nn.Module):
    """FT as RepDistiller has it."""

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _pooled_alike(student, teacher)
        return (_attention(student) - _attention(teacher)).abs().mean()


class PaperFactorTransfer(nn.Module):
    """FT as its authors have it."""

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
