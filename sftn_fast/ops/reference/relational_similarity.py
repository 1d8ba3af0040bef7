"""SP and PKT in plain PyTorch. See :mod:`sftn_fast.ops.relational_similarity` for the formulas."""

from __future__ import annotations

import torch
from torch import Tensor

from sftn_fast.ops._dtype import widened, without_autocast

SP_EPS = 1e-12


def sp_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Compute :func:`sftn_fast.ops.sp_loss` in plain PyTorch."""
    student_features, teacher_features = widened(student_features, teacher_features)
    with without_autocast(student_features.device.type):
        student, teacher = _gram_rows(student_features), _gram_rows(teacher_features)
        return (teacher - student).square().sum() / max(len(student), 1) ** 2


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Compute :func:`sftn_fast.ops.pkt_loss` in plain PyTorch."""
    student, teacher = widened(student, teacher)
    with without_autocast(student.device.type):
        p_student, p_teacher = _similarity_rows(student, eps), _similarity_rows(teacher, eps)
        ratio = (p_teacher + eps) / (p_student + eps)
        return (p_teacher * ratio.log()).sum() / max(len(student), 1) ** 2


def _gram_rows(features: Tensor) -> Tensor:
    """Return the Gram matrix ``[B, B]`` with each row divided by its norm."""
    flat = features.flatten(1)
    gram = flat @ flat.t()
    norm = torch.linalg.vector_norm(gram, dim=1, keepdim=True)
    # A row of zeros stays zero and has no gradient, where the division would give a slope of 1 / SP_EPS.
    return torch.where(norm == 0, 0.0, gram / norm.clamp(min=SP_EPS))


def _similarity_rows(embedding: Tensor, eps: float) -> Tensor:
    """Return cosine similarities ``[B, B]``, mapped to 0..1, each row divided by its sum."""
    constant = embedding.detach()
    square = constant.square().sum(dim=1, keepdim=True)
    largest = constant.abs().amax(dim=1, keepdim=True) if constant.shape[1] else square
    # A row that is zero, or holds NaN or infinity, has cosine 0 to all rows.
    alive = (largest > 0) & (square < torch.inf)
    embedding = torch.where(alive, embedding, 0.0)
    # Scale first: the squares of small numbers underflow in float32.
    largest = torch.where(alive, largest, 1.0)
    norm = largest * torch.linalg.vector_norm(embedding / largest, dim=1, keepdim=True)
    unit = embedding / (norm + eps)
    similarity = ((unit @ unit.t() + 1) / 2).clamp(min=0)
    return similarity / similarity.sum(dim=1, keepdim=True)
