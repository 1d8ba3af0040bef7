"""Self-distillation without a teacher: the student's own confidence and ranking, by Zipf's law.

Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
Customized Soft Labels", ICCV 2023.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import NonNegative
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import average_pooled, in_float32

EPS = 1e-6
SMOOTHING = 0.1
"""Label smoothing of the auxiliary classifier, as in the authors' code."""


@register("uskd")
class USKD(RelationalMethod):
    """``alpha mean(-w log p(y)) + beta mean H(z, q) + mu mean H(smoothed label, p')``.

    p and p' are the student's prediction and that of an auxiliary linear classifier, which learns, on the mean of the
    last stage's map but one. ``w = 1 + p(y)^2 - mean of p(y)^2`` over the batch. q is the prediction over the classes
    other than the label y, H the cross-entropy. z gives them probabilities proportional to 1 / rank. They rank by
    ``p' / (1 - p'(y)) + log p / (1 - log p(y))``; the logarithms are those of the authors' code. The teacher is not
    used.

    Defaults: alpha, beta and mu 0.1 as in the authors' code for CIFAR-100.
    """

    published: ClassVar = {"resnet34 resnet18": "uskd:alpha=1:beta=0.1:mu=0.005"}

    def __init__(
        self, setup: Setup, *, alpha: NonNegative = 0.1, beta: NonNegative = 0.1, mu: NonNegative = 0.1
    ) -> None:
        super().__init__(setup)
        setup.require_maps()
        if len(setup.student.stages) < 2:
            raise ValueError(f"the student must have two stages or more, got {len(setup.student.stages)}")
        self.alpha, self.beta, self.mu = alpha, beta, mu
        self.classifier = nn.Linear(setup.student.stages[-2][0], setup.student.net.num_classes)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        auxiliary = self.classifier(average_pooled(student.stages[-2], 1).flatten(1))
        logits, target = student.logits, batch.target
        (confidence,) = self.together(squared_confidence(logits, target))
        own, others, weak = terms(logits, auxiliary, target, confidence.mean())
        return self.alpha * own + self.beta * others + self.mu * weak


@in_float32
@torch.no_grad()
def squared_confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Return the squared probability [N] of the labels [N] by logits [N, C]."""
    return logits.softmax(1).gather(1, target[:, None]).squeeze(1).square()


@in_float32
def terms(logits: Tensor, auxiliary: Tensor, target: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms, each 0-dim.

    Args:
        logits, auxiliary: Predictions [N, C] of the student and of its auxiliary classifier.
        target: Labels [N].
        mean: Mean of :func:`squared_confidence` over the batch, 0-dim.
    """
    log_p = logits.log_softmax(1)
    weight = 1 + squared_confidence(logits, target) - mean
    own = -(weight * log_p.gather(1, target[:, None]).squeeze(1)).mean()
    is_label = torch.zeros_like(log_p, dtype=torch.bool).scatter(1, target[:, None], True)
    log_q = logits.masked_fill(is_label, -torch.inf).log_softmax(1).masked_fill(is_label, 0)
    others = -(_ranked(log_p.detach(), auxiliary.detach().softmax(1), is_label) * log_q).sum(1).mean()
    return own, others, F.cross_entropy(auxiliary, target, label_smoothing=SMOOTHING)


def _ranked(log_p: Tensor, auxiliary: Tensor, is_label: Tensor) -> Tensor:
    """Return the probabilities [N, C] by Zipf's law of the classes other than the label."""
    at_label = [torch.where(is_label, x, 0).sum(1, keepdim=True) for x in (auxiliary, log_p)]
    score = auxiliary / (1 - at_label[0] + EPS) + log_p / (1 - at_label[1] + EPS)
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)  # from 0; the label has one too
    shares = (1 / (rank + 1).to(log_p)).masked_fill(is_label, 0)
    return shares / shares.sum(1, keepdim=True)
