"""Neuron selectivity transfer: the distribution of a stage's channels over the image.

Huang & Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", 2017.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import NSTLoss


@register("nst")
class NST(PairedMethod):
    """``sum over pairs of MMD^2(channels of s, channels of t)`` with the kernel ``(x . y)^2``.

    See :class:`sftn_fast.nn.NSTLoss`.

    Defaults: weight 50 as in RepDistiller.
    """

    family = "feature maps"
    default_weight = 50.0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.criterion = NSTLoss()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return sum_of(self.criterion(s, t) for s, t in self.maps(student, teacher))
