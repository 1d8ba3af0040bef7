"""Similarity preservation: which images of a batch are alike in the last stage.

Tung & Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("sp")
class SP(RelationalMethod):
    """``sum((G_t - G_s)^2) / B^2``; G holds the products of all pairs of the last stage's maps, rows normalised.

    See :func:`sftn_fast.ops.sp_loss`.

    Defaults: weight 3000 as in RepDistiller, whose code the author confirmed.
    """

    family = "relations"
    default_weight = 3000.0

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return ops.sp_loss(*self.together(student.stages[-1], teacher.stages[-1]))
