"""Contrastive representation distillation as a module: embeddings, memory, loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.nn.precision import in_float32
from sftn_fast.ops._autograd import savable


class Embed(nn.Module):
    """A linear map onto the unit sphere. A row that it maps to zero stays zero, without a NaN."""

    def __init__(self, in_features: int, dim: int = 128) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, dim)

    def forward(self, features: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, dim]``, in float32 at least."""
        (features,) = savable(features)
        return _unit_rows(self.linear(features.flatten(1)))


@in_float32
def _unit_rows(embedding: Tensor) -> Tensor:
    return F.normalize(embedding, dim=1)


class CRDLoss(nn.Module):
    """Contrastive representation distillation (Tian et al., ICLR 2020); see :func:`sftn_fast.ops.crd_loss`.

    Both embeddings learn: give the module's parameters to the optimizer.

    Args:
        student_dim: Length of the student's features.
        teacher_dim: Length of the teacher's features.
        num_samples: Images in the training set.
        dim: Length of the embeddings.
        temperature: Of the scores.
        momentum: Share of the old row when a bank is updated.
        bank_dtype: float32, bfloat16 or float16; half precision halves the banks.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_samples: int,
        *,
        dim: int = 128,
        temperature: float = 0.07,
        momentum: float = 0.5,
        bank_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.embed_student, self.embed_teacher = Embed(student_dim, dim), Embed(teacher_dim, dim)
        self.memory = ops.CRDMemory(num_samples, dim, temperature=temperature, momentum=momentum, dtype=bank_dtype)

    def forward(self, student_features: Tensor, teacher_features: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
        """The loss, 0-dim; the banks are updated while the module is in training mode.

        Args:
            student_features: ``[B, student_dim]``, or what flattens to it.
            teacher_features: ``[B, teacher_dim]``, or what flattens to it.
            index: ``[B]`` int64, the images' numbers in the training set.
            negatives: ``[B, K]``, images of other classes, as from :func:`sftn_fast.ops.sample_negatives`.
        """
        student, teacher = self.embed_student(student_features), self.embed_teacher(teacher_features)
        return ops.crd_loss(student, teacher, index, negatives, self.memory, update=self.training)
