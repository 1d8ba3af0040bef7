"""What arithmetic and storage in a dtype may be off by: bounds that hold on every machine."""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT = 2.0**-24
"""What rounding to float32 is off by, of a number's size."""


def rounding(*counts: int) -> float:
    """What a float32 result of sums of ``counts`` terms, one inside the other, is off by, of the size of its terms.

    Roundings add up like a random walk at worst, in whatever order and by whichever instructions a machine adds; 8 are
    for the operations around the sums.
    """
    return UNIT * (8 + sum(math.sqrt(count) for count in counts))


def assert_rounded_once(actual: Tensor, true: Tensor, arithmetic: float) -> None:
    """``actual`` is ``true`` rounded to its dtype, but for what was computed in float32 before.

    So each element is off by half a step of its dtype at most, and by ``arithmetic`` of the largest one.
    """
    of = torch.finfo(actual.dtype)
    off = (actual.double() - true.double()).abs()
    allowed = of.eps / 2 * true.double().abs() + of.tiny * of.eps / 2  # below `tiny` steps are all alike
    excess = off - allowed
    largest = true.abs().max().item() if true.numel() else 0.0
    assert excess.numel() == 0 or excess.max().item() <= (1 + of.eps) * arithmetic * largest
