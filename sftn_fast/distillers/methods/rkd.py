"""Relational distillation: distances between images and angles between triples of them.

Park et al., "Relational Knowledge Distillation", CVPR 2019.
"""

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
    """``distance mean(smooth_l1(d_s, d_t)) + angle mean(smooth_l1(cos_s, cos_t))`` of the pooled vectors.

    d are the distances of all pairs of images, divided by their mean; cos the cosines of the angles of all triples. See
    :func:`sftn_fast.ops.rkd_loss`.

    Defaults: 25 and 50 as in RepDistiller. The authors' own example, for metric learning, uses 1 and 2.
    """

    family = "relations"
    default_weight = 1.0

    def __init__(self, setup: Setup, *, distance: NonNegative = 25.0, angle: NonNegative = 50.0) -> None:
        super().__init__(setup)
        self.distance, self.angle = distance, angle

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = self.together(student.pooled, teacher.pooled)
        return ops.rkd_loss(ours, theirs, distance_weight=self.distance, angle_weight=self.angle).total
