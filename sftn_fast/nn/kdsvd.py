"""Distillation of how leading singular vectors change from one stage to the next. Plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check


class KDSVDLoss(nn.Module):
    """Distillation of the ``k`` leading singular vectors of each map (Lee et al., ECCV 2018), as in RepDistiller.

    A map, read as a matrix ``[H * W, C]``, has right singular vectors of length C. The student's ``k + 3`` leading ones
    are aligned to the teacher's ``k``: each teacher vector gets the student vector of largest cosine, with its sign.
    Both are scaled by the teacher's singular values, normalised to unit length. For neighbouring stages with vectors a
    and b, the differences of a network are ``exp(-(b - a)^2 / 8)``. The loss is the squared distance between the two
    networks' differences, summed and divided by the batch size. The networks must have the same channels at every
    stage.
    """

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        check.check_size("k", k)
        self.k = k

    @in_float32
    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Tensor]:
        """Compute the losses of two equally long lists of maps ``[N, C, H, W]``.

        Returns a list of 0-dim losses, one fewer than maps, float32, or float64 for float64 maps.
        """
        if len(student) != len(teacher):
            raise ValueError(f"teacher must have as many maps as student, {len(student)}, got {len(teacher)}")
        for i, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
            check.check_feature_map(f"student[{i}]", ours)
            check.check_feature_map(f"teacher[{i}]", theirs)
            check.check_like(f"teacher[{i}], over pixels,", theirs[:, :, 0, 0], f"student[{i}]", ours[:, :, 0, 0])
        vectors = [self._vectors(s, t.detach()) for s, t in zip(student, teacher, strict=True)]
        return [_difference(*both).to(student[0].dtype) / max(len(student[0]), 1) for both in pairwise(vectors)]

    def _vectors(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled right singular vectors ``[N, C, k]`` of both, the student's aligned to the teacher's."""
        values, wanted = _leading(teacher, self.k)
        own = _leading(student, self.k + 3)[1]
        cosine = own.transpose(1, 2) @ wanted
        nearest = cosine.abs() == cosine.abs().amax(1, keepdim=True)
        aligned = own @ torch.where(nearest, cosine.sign(), 0)
        return aligned * values[:, None], wanted * values[:, None]


def _difference(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> Tensor:
    student, teacher = (
        torch.exp(-(last.unsqueeze(2) - first.unsqueeze(1)).square() / 8)
        for first, last in zip(before, after, strict=True)
    )
    squares = (student - teacher).square()
    return torch.where(squares.isfinite(), squares, 0).sum()


def _leading(maps: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return the ``n`` largest singular values ``[N, n]`` and right vectors ``[N, C, n]`` of maps as ``[H * W, C]``.

    The values are constants. A vector ``v_i`` of ``A`` is an eigenvector of ``M = A^T A``. Its derivative is
    ``sum_j v_j (v_j . dM v_i) / (s_i^2 - s_j^2)`` over all other eigenvectors. PyTorch's derivative also divides by the
    differences between vanishing values. It is NaN for maps with several of them, for example after a ReLU.
    """
    # Use float64: differences of squared singular values keep few digits in float32.
    a = maps.double().flatten(2).transpose(1, 2)
    with torch.no_grad():
        _, values, vectors = torch.linalg.svd(a, full_matrices=False)
        vectors = vectors.transpose(1, 2)  # [N, C, r]
        first, squares = vectors[..., :n], values.square()
        gaps = squares[:, None, :n] - squares[:, :, None]  # [N, r, n]
        least = torch.finfo(a.dtype).eps * squares[:, :1, None]
        inverse = torch.where(gaps.abs() > least, 1 / gaps, 0)
        outside = torch.where(squares[:, None, :n] > least, 1 / squares[:, None, :n], 0)
    change = a.transpose(1, 2) @ (a @ first)
    change = change - change.detach()  # 0, with the gradient of M v_i
    along = vectors.transpose(1, 2) @ change
    moved = first + vectors @ (inverse * along) + outside * (change - vectors @ along)
    return F.normalize(values[:, :n]), F.normalize(moved, dim=1)
