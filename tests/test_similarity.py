"""Agreement and divergence against a computation by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sftn_fast import similarity
from sftn_fast.data import Batch


class Table(nn.Module):
    """Answers image i with row i of a table of logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.register_buffer("logits", torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[images[:, 0, 0, 0].long()]


def test_agreement_and_kl_over_uneven_batches() -> None:
    student = Table([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    teacher = Table([[1.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    index = torch.arange(3)
    images = index.float().view(3, 1, 1, 1)
    batches = [Batch(images[:2], index[:2], index[:2]), Batch(images[2:], index[2:], index[2:])]
    measured = similarity.measure(student, teacher, batches)

    p, q = teacher.logits.double().softmax(1), student.logits.double().softmax(1)
    assert measured.kl == pytest.approx((p * (p / q).log()).sum().item() / 3, rel=1e-12)
    assert measured.agreement == pytest.approx(200 / 3)
    itself = similarity.measure(teacher, teacher, batches)
    assert (itself.agreement, itself.kl) == (100.0, 0.0)
