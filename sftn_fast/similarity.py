"""How alike a student and its teacher answer, on data that neither was trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sftn_fast.data import Batch


@dataclass(frozen=True)
class Similarity:
    """Teacher-student likeness over a data set."""

    agreement: float
    """Share of samples on which both choose the same class, in percent."""
    kl: float
    """Mean over the samples of KL(teacher || student) at temperature 1, in nats."""


@torch.no_grad()
def measure(student: nn.Module, teacher: nn.Module, batches: Iterable[Batch]) -> Similarity:
    """Compare two classifiers, both in evaluation mode, over ``batches``."""
    student.eval()
    teacher.eval()
    agreed, divergence, count = None, None, 0
    for batch in batches:
        ours, theirs = student(batch.images).double(), teacher(batch.images).double()
        kl = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="sum", log_target=True)
        same = (ours.argmax(1) == theirs.argmax(1)).sum()
        # Sums stay on the device; reading them once at the end is the only synchronisation.
        agreed = same if agreed is None else agreed + same
        divergence = kl if divergence is None else divergence + kl
        count += len(batch.target)
    assert isinstance(agreed, Tensor) and isinstance(divergence, Tensor), "no batches to compare on"
    return Similarity(agreement=100.0 * agreed.item() / count, kl=divergence.item() / count)
