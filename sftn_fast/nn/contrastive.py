"""Contrastive representation distillation as a module: embeddings, memory, loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check
from sftn_fast.ops._autograd import savable


class Embed(nn.Module):
    """A linear map onto the unit sphere. A row mapped to zero stays zero instead of NaN."""

    def __init__(self, in_features: int, dim: int = 128) -> None:
        super().__init__()
        check.check_size("in_features", in_features)
        check.check_size("dim", dim)
        self.linear = nn.Linear(in_features, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Map ``[B, ...]`` to ``[B, dim]``, in float32 at least."""
        check.check_batch("features", features)
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
        num_samples: Number of images in the training set.
        dim: Length of the embeddings.
        temperature: Divisor of the scores.
        momentum: Weight of the old row in a bank update.
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
        check.check_size("student_dim", student_dim)
        check.check_size("teacher_dim", teacher_dim)
        self.embed_student, self.embed_teacher = Embed(student_dim, dim), Embed(teacher_dim, dim)
        self.memory = ops.CRDMemory(num_samples, dim, temperature=temperature, momentum=momentum, dtype=bank_dtype)

    def forward(self, student_features: Tensor, teacher_features: Tensor, index: Tensor, negatives: Tensor) -> Tensor:
        """Compute the loss, 0-dim. In training mode this also updates the banks.

        Args:
            student_features: ``[B, student_dim]``, or a shape that flattens to it.
            teacher_features: ``[B, teacher_dim]``, or a shape that flattens to it.
            index: ``[B]`` int64, positions of the images in the training set.
            negatives: ``[B, K]``, images of other classes, as from :func:`sftn_fast.ops.sample_negatives`.
        """
        student, teacher = self.embed_student(student_features), self.embed_teacher(teacher_features)
        return ops.crd_loss(student, teacher, index, negatives, self.memory, update=self.training)
