"""Neuron selectivity transfer: what the channels of a stage respond to, as a distribution."""

from __future__ import annotations

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import NSTLoss


@register("nst")
class NST(PairedMethod):
    """:class:`sftn_fast.nn.NSTLoss`, summed over the paired stages.

    Source: Huang & Wang, "Like What You Like", 2017; weight 50 as in RepDistiller.
    """

    default_weight = 50.0

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.criterion = NSTLoss()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return sum_of(self.criterion(s, t) for s, t in self.maps(student, teacher))
