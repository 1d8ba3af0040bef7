"""Refined logit distillation: the teacher's confidence, and its ranking of the classes below the label.

Sun et al., "Knowledge Distillation with Refined Logits", ICCV 2025.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features


@register("rld")
class RLD(Method):
    """``alpha tau^2 KL([m, 1 - m] || [p_s(y), 1 - p_s(y)]) + beta T^2 KL(q_t || q_s)``, mean over the batch.

    m is the teacher's largest probability and p_s(y) the student's of the label, at temperature tau, which is
    ``confidence_temperature``. q is the distribution at T over the classes that the teacher ranks below the label, so
    a mistake of the teacher is not taught. The weight warms up over ``warmup`` epochs.

    Defaults: alpha 1, beta 8, temperature 4, tau 1 and 20 epochs of warm-up as in the authors' code for CIFAR-100.
    """

    needs_features = False
    published: ClassVar = {
        "resnet34 resnet18": "rld:beta=0.5:temperature=1:warmup=1",
        "resnet50 MobileNetV1": "rld:beta=2:temperature=1:warmup=1",
    }

    def __init__(
        self,
        setup: Setup,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive = 4.0,
        confidence_temperature: Positive = 1.0,
        warmup: Annotated[int, Bound(0)] = 20,
    ) -> None:
        super().__init__(setup)
        self.alpha, self.beta = alpha, beta
        self.temperature, self.confidence_temperature = temperature, confidence_temperature
        self.warmup = WarmUp(warmup)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.warmup.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        loss = ops.rld_loss(
            student.logits,
            teacher.logits,
            batch.target,
            self.temperature,
            confidence_weight=self.alpha,
            ranking_weight=self.beta,
            confidence_temperature=self.confidence_temperature,
        )
        return self.warmup.factor * loss
