"""Decoupled distillation: the probability of the true class and the distribution over the others, with two weights.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features
from sftn_fast.ops import dkd_loss


@register("dkd")
class DKD(Method):
    """``T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``, mean over the batch.

    b is the probability of the label's class against all others, q the distribution over the other classes alone, both
    at temperature T. The weight warms up over ``warmup`` epochs.

    Defaults: alpha 1, beta 8, temperature 4 and 20 epochs of warm-up as in mdistiller, by the same authors. They tune
    beta for each pair of networks, mostly from 1 to 8.
    """

    needs_features = False

    def __init__(
        self,
        setup: Setup,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive = 4.0,
        warmup: Annotated[int, Bound(0)] = 20,
    ) -> None:
        super().__init__(setup)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature
        self.warmup = WarmUp(warmup)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.warmup.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        total = dkd_loss(
            student.logits,
            teacher.logits,
            batch.target,
            self.temperature,
            target_weight=self.alpha,
            nontarget_weight=self.beta,
        ).total
        return self.warmup.factor * total
