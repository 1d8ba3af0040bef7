"""Normalised distillation: the teacher's confidence in the label, and its distribution over the other classes.

Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
Customized Soft Labels", ICCV 2023.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("nkd")
class NKD(Method):
    """``-p_t(y) log p_s(y) + gamma T^2 H(q_t, q_s)``, mean over the batch.

    p is at temperature 1. q is the distribution at T over the classes other than the label y, H the cross-entropy.

    Defaults: gamma 3.5 and temperature 3 as in the authors' code for CIFAR-100. On ImageNet they use 1.5 and 1.
    """

    needs_features = False
    published: ClassVar = {
        "resnet34 resnet18": "nkd:gamma=1.5:temperature=1",
        "resnet50 MobileNetV1": "nkd:gamma=1.5:temperature=1",
    }

    def __init__(self, setup: Setup, *, gamma: NonNegative = 3.5, temperature: Positive = 3.0) -> None:
        super().__init__(setup)
        self.gamma, self.temperature = gamma, temperature

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return ops.nkd_loss(student.logits, teacher.logits, batch.target, self.temperature, gamma=self.gamma)
