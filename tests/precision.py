"""Bounds on the errors of arithmetic and storage in a dtype, which hold on every machine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-24
"""Relative error of rounding to float32."""


def rounding(*counts: int) -> float:
    """Return the error of nested float32 sums of ``counts`` terms, relative to the size of the terms.

    Roundings add up like a random walk at worst, in any order and with any instructions of a machine; 8 are
    for the operations around the sums.
    """
    return UNIT * (8 + sum(math.sqrt(count) for count in counts))


TF32 = 2.0**-10
"""Distance of 1 from the next number with the mantissa of TF32, in which a GPU computes convolutions of float32."""


def of_training(dtype: torch.dtype, layers: int, steps: int) -> float:
    """Return by how much two trainings may differ on a GPU, relative to the largest value of a tensor.

    Both compute the same, but libraries may choose another algorithm for a recorded call, which rounds otherwise. Each
    layer rounds its output and its gradient once in a step, by half of its dtype's eps. These roundings add up like a
    random walk, over ``layers`` and ``steps``.
    """
    eps = TF32 if dtype == torch.float32 else torch.finfo(dtype).eps
    return eps / 2 * math.sqrt(2 * layers * steps)


def assert_rounded_once(actual: Tensor, true: Tensor, arithmetic: float) -> None:
    """Check that ``actual`` is ``true`` rounded to its dtype, up to errors of float32 arithmetic before that.

    Each element may differ by half a step of its dtype, plus ``arithmetic`` times the largest element.
    """
    of = torch.finfo(actual.dtype)
    off = (actual.double() - true.double()).abs()
    allowed = of.eps / 2 * true.double().abs() + of.tiny * of.eps / 2  # below `tiny` all steps have the same size
    excess = off - allowed
    largest = true.abs().max().item() if true.numel() else 0.0
    assert excess.numel() == 0 or excess.max().item() <= (1 + of.eps) * arithmetic * largest
