"""Contrastive distillation: scores, loss, gradients of both embeddings, and the update of both banks."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.cases.case import Case, Step, step
from bench.eager import contrastive as eager
from sftn_fast import ops
from sftn_fast.ops import reference

BATCH, NEGATIVES, DIM = 64, 16384, 128  # RepDistiller's
NOTE = (
    "A call also updates both banks. `eager`, `compile` and `reference` are given their negatives; in `CRD and its "
    "negatives` ours draws its own in every call, for which RepDistiller has loader processes. The banks of `eager` "
    "and `compile` are float32 in all cases."
)


def _crd(num_samples: int, bank_dtype: torch.dtype, device: str) -> dict[str, Step]:
    embeddings = [F.normalize(torch.randn(BATCH, DIM, device=device)).requires_grad_() for _ in range(2)]
    index = torch.randint(num_samples, (BATCH,), device=device)
    # distinct and ascending, as from ops.sample_negatives
    step_size = num_samples // NEGATIVES
    first = torch.arange(NEGATIVES, device=device) * step_size
    negatives = first + torch.randint(step_size, (BATCH, NEGATIVES), device=device)
    with torch.device(device):  # drawing banks of a million rows takes seconds on a CPU
        authors = eager.CRDLoss(num_samples, DIM)
        memories = [ops.CRDMemory(num_samples, DIM, dtype=bank_dtype) for _ in range(2)]
    for memory in memories:
        memory.student_bank.copy_(authors.memory.student_bank)
        memory.teacher_bank.copy_(authors.memory.teacher_bank)
    losses = {
        "eager": lambda: authors(*embeddings, index, negatives),
        "reference": lambda: reference.crd_loss(*embeddings, index, negatives, memories[0]),
        "ours": lambda: ops.crd_loss(*embeddings, index, negatives, memories[1]),
    }
    return {name: step(embeddings, loss) for name, loss in losses.items()}


def _crd_with_negatives(num_samples: int, classes: int, device: str) -> dict[str, Step]:
    """Build a case in which ours also draws negatives. The authors' are drawn by uncounted loader processes."""
    steps = _crd(num_samples, torch.float32, device)
    labels = torch.randint(classes, (num_samples,), device=device)
    index = torch.randint(num_samples, (BATCH,), device=device)

    loss = steps["ours"].loss

    def ours() -> Tensor:
        ops.sample_negatives(index, labels, NEGATIVES, dtype=torch.int32)
        return loss()

    return {**steps, "ours": step(steps["ours"].leaves, ours)}


CASES = [
    Case("CRD and its negatives, N 50,000", partial(_crd_with_negatives, 50_000, 100)),
    Case("CRD and its negatives, N 1,281,167", partial(_crd_with_negatives, 1_281_167, 1000)),
    Case("CRD, N 50,000", partial(_crd, 50_000, torch.float32)),
    Case("CRD, N 50,000, bfloat16 banks", partial(_crd, 50_000, torch.bfloat16)),
    Case("CRD, N 50,000, float16 banks", partial(_crd, 50_000, torch.float16)),
    Case("CRD, N 1,281,167", partial(_crd, 1_281_167, torch.float32)),
    Case("CRD, N 1,281,167, bfloat16 banks", partial(_crd, 1_281_167, torch.bfloat16)),
]
