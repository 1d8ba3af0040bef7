"""Inputs of the golden values of published methods: waves of float64, from which the authors' code computed them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def wave(shape: tuple[int, ...], step: float, start: float, function: Callable[[Tensor], Tensor] = torch.sin) -> Tensor:
    """Return ``function`` of equal steps, in the order of a tensor's elements."""
    return function(torch.arange(math.prod(shape), dtype=torch.float64) * step + start).reshape(shape)


STUDENT_LOGITS, TEACHER_LOGITS = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)
STUDENT_STRONG, TEACHER_STRONG = 3 * wave((4, 10), 0.5, 0.4), 3 * wave((4, 10), 0.2, 0.6, torch.cos)
STUDENT_MAP, TEACHER_MAP = 1.5 * wave((4, 8, 4, 4), 0.31, 0), 1.5 * wave((4, 8, 4, 4), 0.19, 0, torch.cos)
STUDENT_WEIGHT, TEACHER_WEIGHT = wave((10, 8), 0.21, 0.7), wave((10, 8), 0.17, 0.3)
STUDENT_BIAS, TEACHER_BIAS = 0.1 * wave((10,), 0.6, 0.2), 0.1 * wave((10,), 0.4, 0)
STUDENT_VECTORS, TEACHER_VECTORS = wave((4, 6), 0.9, 0.3), wave((4, 6), 0.5, 0.1, torch.cos)
TARGET = torch.tensor([0, 3, 1, 9])
