"""Knowledge distillation: the student's softened predictions follow the teacher's."""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import FusedMethod, Setup
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("kd")
class KD(FusedMethod):
    """T^2 KL(softmax(t / T) || softmax(s / T)), mean over the batch.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network"; alone, weighted 0.9 beside 0.1 of
    cross-entropy, as in HobbitLong/RepDistiller.
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
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See :meth:`FusedMethod.loss_with_ce`."""
        total, loss, ce = ops.kd_ce_loss(
            student_logits, teacher_logits, target, self.temperature, kd_weight=weight, ce_weight=ce_weight
        )
        return total, ce, loss
