"""Contrastive distillation as in RepDistiller: gather, product and exponential for both sides, then the update."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ContrastMemory(nn.Module):
    """Both banks, and the scores of a batch against them: ``[B, 1 + K]`` for each side, the positive first."""

    def __init__(self, num_samples: int, dim: int, *, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        self.num_samples, self.temperature, self.momentum = num_samples, temperature, momentum
        bound = 1 / math.sqrt(dim / 3)
        self.z: list[float | None] = [None, None]
        for name in ("student_bank", "teacher_bank"):
            self.register_buffer(name, torch.empty(num_samples, dim).uniform_(-bound, bound))

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor) -> list[Tensor]:
        rows = torch.cat([index[:, None], negatives], dim=1)
        sides = ((student, self.teacher_bank), (teacher, self.student_bank))
        scores = [self._scores(embedding, bank, rows) for embedding, bank in sides]
        for side, out in enumerate(scores):
            if self.z[side] is None:
                self.z[side] = out.mean().item() * self.num_samples
            scores[side] = torch.div(out, self.z[side])
        with torch.no_grad():
            for embedding, bank in ((student, self.student_bank), (teacher, self.teacher_bank)):
                row = torch.index_select(bank, 0, index).mul_(self.momentum) + (1 - self.momentum) * embedding
                bank.index_copy_(0, index, row / row.pow(2).sum(1, keepdim=True).pow(0.5))
        return scores

    def _scores(self, embedding: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
        batch, dim = embedding.shape
        gathered = torch.index_select(bank, 0, rows.view(-1)).detach().view(batch, -1, dim)
        out = torch.bmm(gathered, embedding.view(batch, dim, 1))
        return torch.exp(torch.div(out, self.temperature)).squeeze(2)


class NCELoss(nn.Module):
    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def forward(self, scores: Tensor) -> Tensor:
        batch, num_negatives = scores.shape[0], scores.shape[1] - 1
        noise = num_negatives / self.num_samples
        positive = torch.div(scores[:, 0], scores[:, 0] + (noise + 1e-7)).log()
        negative = torch.div(torch.full_like(scores[:, 1:], noise), scores[:, 1:] + (noise + 1e-7)).log()
        return -(positive.sum() + negative.sum()) / batch


class CRDLoss(nn.Module):
    def __init__(self, num_samples: int, dim: int) -> None:
        super().__init__()
        self.memory, self.criterion = ContrastMemory(num_samples, dim), NCELoss(num_samples)

    def forward(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
        of_student, of_teacher = self.memory(student, teacher, index, negatives)
        return self.criterion(of_student) + self.criterion(of_teacher)
