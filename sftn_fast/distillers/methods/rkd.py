"""Relational distillation: distances between images and angles between triples of them."""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import NonNegative
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("rkd")
class RKD(RelationalMethod):
    """:func:`sftn_fast.ops.rkd_loss` of the pooled vectors.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019; weights 25 and 50 as in RepDistiller. The
    authors' own example, of metric learning, has 1 and 2.
    """

    default_weight = 1.0

    def __init__(self, setup: Setup, *, distance: NonNegative = 25.0, angle: NonNegative = 50.0) -> None:
        super().__init__(setup)
        self.distance, self.angle = distance, angle

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = self.together(student.pooled, teacher.pooled)
        return ops.rkd_loss(ours, theirs, distance_weight=self.distance, angle_weight=self.angle).total
