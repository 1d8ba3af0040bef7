"""SP and PKT in plain PyTorch. See :mod:`sftn_fast.ops.relational_similarity` for what they compute."""

from __future__ import annotations

import torch
from torch import Tensor

from sftn_fast.ops._dtype import widened

SP_EPS = 1e-12


def sp_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Reference of :func:`sftn_fast.ops.sp_loss`."""
    student_features, teacher_features = widened(student_features, teacher_features)
    with torch.autocast(student_features.device.type, enabled=False):
        student, teacher = _gram_rows(student_features), _gram_rows(teacher_features)
        return (teacher - student).square().sum() / max(len(student), 1) ** 2


def pkt_loss(student: Tensor, teacher: Tensor, *, eps: float = 1e-7) -> Tensor:
    """Reference of :func:`sftn_fast.ops.pkt_loss`."""
    student, teacher = widened(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        p_student, p_teacher = _similarity_rows(student, eps), _similarity_rows(teacher, eps)
        ratio = (p_teacher + eps) / (p_student + eps)
        return (p_teacher * ratio.log()).sum() / max(len(student), 1) ** 2


def _gram_rows(features: Tensor) -> Tensor:
    """Rows of the Gram matrix, each of norm 1: ``[B, B]``."""
    flat = features.flatten(1)
    gram = flat @ flat.t()
    norm = torch.linalg.vector_norm(gram, dim=1, keepdim=True)
    # A row of zeros stays what it is. The slope that it would have, 1 / SP_EPS, is left out.
    return torch.where(norm == 0, 0.0, gram / norm.clamp(min=SP_EPS))


def _similarity_rows(embedding: Tensor, eps: float) -> Tensor:
    """Cosine similarities from 0 to 1, each row divided by its sum: ``[B, B]``."""
    constant = embedding.detach()
    square = constant.square().sum(dim=1, keepdim=True)
    largest = constant.abs().amax(dim=1, keepdim=True) if constant.shape[1] else square
    # A row of zeros, or one with NaN or infinity in it, has cosine 0 to all rows.
    alive = (largest > 0) & (square < torch.inf)
    embedding = torch.where(alive, embedding, 0.0)
    # The squares of small numbers are too small for float32.
    largest = torch.where(alive, largest, 1.0)
    norm = largest * torch.linalg.vector_norm(embedding / largest, dim=1, keepdim=True)
    unit = embedding / (norm + eps)
    similarity = ((unit @ unit.t() + 1) / 2).clamp(min=0)
    return similarity / similarity.sum(dim=1, keepdim=True)
