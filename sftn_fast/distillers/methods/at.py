"""Attention transfer: where in the image a stage looks.

Zagoruyko & Komodakis, "Paying More Attention to Attention", ICLR 2017.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("at")
class AT(PairedMethod):
    """``sum over pairs of mean((at(s) - at(t))^2)``; ``at`` is the mean of ``|f|^p`` over channels, normalised.

    See :func:`sftn_fast.ops.at_loss`.

    Defaults: weight 1000 and p = 2 as in RepDistiller and the authors' code, which agree.
    """

    family = "feature maps"
    default_weight = 1000.0

    def __init__(self, setup: Setup, *, p: Positive = 2.0) -> None:
        super().__init__(setup)
        self.p = p

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return sum_of(ops.at_loss(s, t, p=self.p) for s, t in self.maps(student, teacher))
