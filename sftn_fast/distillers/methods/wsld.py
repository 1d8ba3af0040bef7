"""Weighted soft labels: an image counts the more, the further the student is behind the teacher.

Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32

EPS = 1e-7
"""Added to the teacher's cross-entropy, as in mmclassification's distillation toolbox."""


@register("wsld")
class WSLD(Method):
    """``T^2 mean(w H(softmax(t / T), softmax(s / T)))`` with ``w = 1 - exp(-CE_s / CE_t)``; H is the cross-entropy.

    CE is a network's cross-entropy with the label. No gradient passes through w.

    Defaults: weight 2.25 and temperature 4 for CIFAR-100 as in mmclassification's distillation toolbox. On ImageNet it
    has ``wsld=2.5:temperature=2``.
    """

    default_weight = 2.25
    needs_features = False
    published: ClassVar = {"resnet34 resnet18": "wsld=2.5:temperature=2"}

    def __init__(self, setup: Setup, *, temperature: Positive = 4.0) -> None:
        super().__init__(setup)
        self.temperature = temperature

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return weighted_cross_entropy(student.logits, teacher.logits, batch.target, self.temperature)


@in_float32
def weighted_cross_entropy(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the loss of logits [N, C] with labels [N], 0-dim."""
    with torch.no_grad():
        behind, ahead = (F.cross_entropy(logits, target, reduction="none") for logits in (student, teacher))
        weight = 1 - (-behind / (ahead + EPS)).exp()
    wanted = (teacher / temperature).softmax(1)
    rows = F.cross_entropy(student / temperature, wanted, reduction="none")
    return temperature**2 * (weight * rows).mean()
