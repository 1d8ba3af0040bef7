"""Decoupled distillation: the probability of the true class and the distribution over the others, with two weights.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32


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
        ours = _decoupled(student.logits, batch.target, self.temperature)
        theirs = _decoupled(teacher.logits, batch.target, self.temperature)
        binary, others = (
            F.kl_div(s, t, reduction="batchmean", log_target=True) for s, t in zip(ours, theirs, strict=True)
        )
        return self.warmup.factor * self.temperature**2 * (self.alpha * binary + self.beta * others)


@in_float32
def _decoupled(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return logarithms of b [N, 2], the class and all others together, and of q [N, C], with 0 at the class."""
    logits = logits / temperature
    is_class = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, target[:, None], True)
    others = logits.masked_fill(is_class, -torch.inf)
    binary = torch.stack([logits.gather(1, target[:, None]).squeeze(1), others.logsumexp(1)], 1)
    # The class itself is 0 in both networks, and adds exp(0) (0 - 0) = 0 to the divergence.
    return binary.log_softmax(1), others.log_softmax(1).masked_fill(is_class, 0)
