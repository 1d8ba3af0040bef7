"""Curriculum temperature: a temperature that learns to make the student's task harder.

Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("ctkd")
class CTKD(Method):
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` with ``T = start + span sigmoid(theta)``, mean over the batch.

    The number theta starts at 1 and learns beside the student, by the gradient times
    ``-(1 - cos(pi min(epoch / ramp, 1))) / 2``: it climbs where the student descends, at full speed from epoch ``ramp``
    on. With ``standardize``, each row of the logits is ``(z - mean) / std`` first (Sun et al., "Logit Standardization
    in Knowledge Distillation", CVPR 2024).

    Defaults: T from 1 to 21 and a ramp of 10 epochs as in the authors' code for CIFAR-100; alone, weight 0.9 and
    cross-entropy 0.1, as there. On ImageNet they use `ctkd=1:ramp=5,ce=1`. The weight of standardised logits is 9.
    """

    weights_alone = (0.9, 0.1)
    needs_features = False

    def __init__(
        self,
        setup: Setup,
        *,
        start: Positive = 1.0,
        span: Positive = 20.0,
        ramp: Annotated[int, Bound(0)] = 10,
        standardize: bool = False,
    ) -> None:
        super().__init__(setup)
        self.start, self.span, self.ramp, self.standardize = start, span, ramp, standardize
        self.theta = nn.Parameter(torch.ones(()))
        self.reversal = -1.0

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        before = self.reversal
        share = min((epoch + 1) / self.ramp, 1.0) if self.ramp else 1.0
        self.reversal = -(1 - math.cos(math.pi * share)) / 2
        return self.reversal != before

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        fixed = self.theta.detach()
        theta = fixed + self.reversal * (self.theta - fixed)  # the value of theta, and its gradient times the factor
        temperature = self.start + self.span * theta.sigmoid()
        return ops.kd_loss(student.logits, teacher.logits, temperature, standardize=self.standardize)
