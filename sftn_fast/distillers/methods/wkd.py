"""Wasserstein distance of predictions: a mistake costs less among classes that the teacher finds alike.

Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.classifier import linear_layer
from sftn_fast.distillers.decay import CosineDecay
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32

EPS = 1e-8
"""Added to a cost, as in the authors' code."""


@register("wkd")
class WKD(Method):
    """``-p_t(y) log p_s(y) + gamma W(q_s, q_t)``, mean over the batch.

    p is at temperature 1, q the distribution at T over the classes other than the label y. W is the cost of moving one
    distribution to the other by entropic transport; see :func:`sftn_fast.ops.wkd_loss`. Between two classes it is
    ``1 - exp(-kappa (1 - cosine))`` of their rows in the teacher's last layer. gamma falls by a cosine from epoch
    ``decay_start`` to 0 at ``decay_end``; equal epochs keep it constant. The authors also measure how alike classes
    are by a pass over the training set, which is not implemented.

    Defaults: gamma 600, temperature 8 and the decay of the last 90 of 240 epochs as in the authors' code for resnet32x4
    and resnet8x4.
    """

    needs_features = False
    published: ClassVar = {
        "resnet32x4 resnet8x4": "wkd",
        "wrn_40_2 ShuffleV1": "wkd:gamma=200:temperature=6",
        "resnet34 resnet18": "wkd:gamma=30:temperature=2:decay_start=0:decay_end=100",
        "resnet50 MobileNetV1": "wkd:gamma=25:temperature=2:kappa=2:decay_start=0:decay_end=100",
    }

    def __init__(
        self,
        setup: Setup,
        *,
        gamma: NonNegative = 600.0,
        temperature: Positive = 8.0,
        kappa: Positive = 1.0,
        regularization: Positive = 0.05,
        iterations: Annotated[int, Bound(1)] = 10,
        decay_start: Annotated[int, Bound(0)] = 150,
        decay_end: Annotated[int, Bound(0)] = 240,
    ) -> None:
        super().__init__(setup)
        linear_layer("teacher", setup.teacher.net)
        self._held = (setup.teacher.net,)  # a tuple, so that the network is not registered
        self.gamma, self.temperature, self.kappa = gamma, temperature, kappa
        self.regularization, self.iterations = regularization, iterations
        self.decay = CosineDecay(decay_start, decay_end)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.decay.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        weight = linear_layer("teacher", self._held[0]).weight.detach()
        return ops.wkd_loss(
            student.logits,
            teacher.logits,
            batch.target,
            cost_between_classes(weight, self.kappa),
            self.temperature,
            gamma=self.gamma * self.decay.factor,
            regularization=self.regularization,
            iterations=self.iterations,
        )


@in_float32
def cost_between_classes(weight: Tensor, kappa: float) -> Tensor:
    """Return the cost [C, C] of moving probability between classes with the rows ``weight`` [C, D]."""
    rows = F.normalize(weight, dim=1)
    return torch.relu(1 - (-kappa * (1 - rows @ rows.T)).exp()) + EPS
