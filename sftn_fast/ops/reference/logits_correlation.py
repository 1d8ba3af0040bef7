"""DIST in plain PyTorch. See :mod:`sftn_fast.ops.logits_correlation` for the formula."""

from __future__ import annotations

import torch
from torch import Tensor

from sftn_fast.ops._dtype import widened
from sftn_fast.ops.reference.logits import _scaled
from sftn_fast.ops.terms import DISTTerms

EPS = 1e-8
"""What is added to the product of two norms, as in the authors' code."""
CENTRED_FROM = 64
"""Temperature from which on the columns are those of the probabilities less ``1 / C``."""
NEAR_UNIFORM = 0.5
"""Least distance from 1 of the mean exponential of a row that is not near uniform."""
LEAST_SQUARE = 1e-24
"""Least square of a norm: the root of 0 has no derivative."""


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 4.0,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> DISTTerms:
    """Compute :func:`sftn_fast.ops.dist_loss` in plain PyTorch."""
    student_logits, teacher_logits = widened(student_logits, teacher_logits)
    student, teacher = (_scaled(x, temperature) for x in (student_logits, teacher_logits))
    rows = _centred_softmax(student), _centred_softmax(teacher)
    # The columns differ by a constant, which costs small probabilities their digits, or at a large temperature all.
    columns = rows if temperature >= CENTRED_FROM else (student.softmax(1), teacher.softmax(1))
    inter = temperature**2 * _uncorrelated(*rows)
    intra = temperature**2 * _uncorrelated(*(x.t() for x in columns))
    return DISTTerms(inter_weight * inter + intra_weight * intra, inter.detach(), intra.detach())


def _centred_softmax(scaled: Tensor) -> Tensor:
    """Return the softmax ``[N, C]`` less ``1 / C``."""
    num_classes = scaled.shape[1]
    # If all exponentials are near 1, as at a large temperature, that difference has lost its digits.
    less_1 = scaled.expm1()
    mean = less_1.mean(1, keepdim=True)
    near = mean.detach() >= -NEAR_UNIFORM
    apart = (less_1 - mean) / (num_classes * torch.where(near, 1 + mean, 1.0))
    return torch.where(near, apart, scaled.softmax(1) - 1 / num_classes)


def _uncorrelated(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over rows of 1 - Pearson's correlation, 0 for an empty matrix."""
    if a.numel() == 0:
        return (a + b).sum()
    a, b = _centred(a), _centred(b)
    norms = [x.square().sum(1).clamp(min=LEAST_SQUARE).sqrt() for x in (a, b)]
    return (1 - (a * b).sum(1) / (norms[0] * norms[1] + EPS)).mean()


def _centred(x: Tensor) -> Tensor:
    # Less the first value, a constant row is exactly 0; less its rounded mean alone, it might not be.
    x = x - x[:, :1].detach()
    return x - x.mean(1, keepdim=True)
