"""Probabilistic knowledge transfer: similarities of the images, as probabilities.

Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("pkt")
class PKT(RelationalMethod):
    """``mean over i, j of p_t log(p_t / p_s)``, with ``p_ij`` proportional to ``cosine_ij + 1`` of the pooled vectors.

    See :func:`sftn_fast.ops.pkt_loss`.

    Defaults: weight 30000 as in RepDistiller; it is large because the loss is a mean over all pairs of images.
    """

    family = "relations"
    default_weight = 30000.0

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return ops.pkt_loss(*self.together(student.pooled, teacher.pooled))
