"""Contrastive distillation in plain PyTorch. See :mod:`sftn_fast.ops.contrastive` for the formulas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.ops._dtype import without_autocast

if TYPE_CHECKING:
    from sftn_fast.ops.memory import CRDMemory

EPS = 1e-7


def crd_loss(
    student_embedding: Tensor,
    teacher_embedding: Tensor,
    index: Tensor,
    negatives: Tensor,
    memory: CRDMemory,
    *,
    update: bool = True,
) -> Tensor:
    """Compute :func:`sftn_fast.ops.crd_loss` in plain PyTorch."""
    dtype = memory.compute_dtype(student_embedding, teacher_embedding)
    student, teacher = student_embedding.to(dtype), teacher_embedding.to(dtype)
    if len(index) == 0:
        return student.sum() + teacher.sum()
    rows = torch.cat([index[:, None], negatives], dim=1)
    of_student = _nce(_scores(student, memory.teacher_bank, rows, memory.temperature), memory.z_student, memory)
    of_teacher = _nce(_scores(teacher, memory.student_bank, rows, memory.temperature), memory.z_teacher, memory)
    if update:
        update_banks(memory, student_embedding, teacher_embedding, index)
    return of_student + of_teacher


@torch.no_grad()
def update_banks(memory: CRDMemory, student_embedding: Tensor, teacher_embedding: Tensor, index: Tensor) -> None:
    """Do :meth:`sftn_fast.ops.CRDMemory.update` in plain PyTorch."""
    if len(index) == 0:
        return
    order = torch.arange(len(index), device=index.device)
    last = torch.where(index[:, None] == index, order, -1).amax(dim=1)  # last occurrence of each row in the batch
    for name, embedding in (("student_bank", student_embedding), ("teacher_bank", teacher_embedding)):
        bank = getattr(memory, name)
        dtype = memory.compute_dtype(embedding)
        old = bank.index_select(0, index)
        mixed = memory.momentum * old.to(dtype) + (1 - memory.momentum) * embedding[last].to(dtype)
        norm = mixed.square().sum(dim=1, keepdim=True).sqrt()
        new = mixed / norm.clamp(min=torch.finfo(dtype).tiny ** 0.5)
        row = torch.where(norm.isfinite(), new.to(bank.dtype), old)
        if torch.compiler.is_compiling():
            # Compilers may read the bank again in the backward pass, which needs the old values: don't write in place.
            setattr(memory, name, bank.index_copy(0, index, row))
        else:
            bank.index_copy_(0, index, row)


def _scores(embedding: Tensor, bank: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Return ``<bank[rows[b, k]], embedding[b]> / T``, ``[B, 1 + K]``, gathered from the scores of the whole bank."""
    constants = bank.to(embedding.dtype, copy=True)  # the backward pass needs the rows from before the update
    with without_autocast(bank.device.type):
        scores = embedding @ constants.T
    return scores.gather(1, rows.long()) / temperature


def _nce(scores: Tensor, z: Tensor, memory: CRDMemory) -> Tensor:
    """Compute noise-contrastive estimation as logistic regression. Column 0 is the positive."""
    num_negatives = scores.shape[1] - 1
    with torch.no_grad():
        first = scores.exp().mean() * memory.num_samples
        first = torch.where(first.isfinite(), first, math.nan)
        z.copy_(torch.where(z.isnan(), first.to(z.dtype), z))
    noise = num_negatives / memory.num_samples
    logits = scores - (z.to(scores.dtype) * (noise + EPS)).log()
    constant = num_negatives * math.log1p(EPS / noise)
    return (F.softplus(-logits[:, 0]) + F.softplus(logits[:, 1:]).sum(dim=1)).mean() + constant
