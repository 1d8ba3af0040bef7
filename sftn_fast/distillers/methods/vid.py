"""Variational information distillation: likelihood of the teacher's maps, predicted from the student's.

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019.
"""

from __future__ import annotations

from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import VIDLoss


@register("vid")
class VID(PairedMethod):
    """``sum over pairs of mean(((regressor(s) - t)^2 / v + log v) / 2)``; regressor and variances v per channel learn.

    See :class:`sftn_fast.nn.VIDLoss`.

    Defaults: weight 1 and initial variance 5 as in RepDistiller.
    """

    family = "feature maps"
    default_weight = 1.0

    def __init__(self, setup: Setup, *, init_variance: Positive = 5.0) -> None:
        super().__init__(setup)
        self.criteria = nn.ModuleList(
            VIDLoss(pair.student_shape[0], pair.teacher_shape[0], init_variance=init_variance) for pair in self.pairs
        )

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        maps = zip(self.criteria, self.maps(student, teacher), strict=True)
        return sum_of(criterion(s, t) for criterion, (s, t) in maps)
