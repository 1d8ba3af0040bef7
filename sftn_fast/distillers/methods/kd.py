"""Knowledge distillation: the teacher's predictions, softened by a temperature.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import FusedMethod, FusedTerms, Setup
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("kd")
class KD(FusedMethod):
    """``T^2 KL(softmax(t / T) || softmax(s / T))``, mean over the batch.

    Defaults: temperature 4 as in RepDistiller; alone, weight 0.9 and cross-entropy 0.1, as there.
    """

    default_weight = 1.0
    weights_alone = (0.9, 0.1)

    def __init__(self, setup: Setup, *, temperature: Positive = 4.0) -> None:
        super().__init__(setup)
        self.temperature = temperature

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return ops.kd_loss(student.logits, teacher.logits, self.temperature)

    def loss_with_ce(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, weight: float, ce_weight: float
    ) -> FusedTerms:
        """See :meth:`FusedMethod.loss_with_ce`."""
        terms = ops.kd_ce_loss(
            student_logits, teacher_logits, target, self.temperature, kd_weight=weight, ce_weight=ce_weight
        )
        return FusedTerms(terms.total, ce=terms.ce, loss=terms.kd)
