"""Softmax regression representation: the teacher's classifier reads the student's features as it reads its own.

Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.classifier import Classifier
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import NonNegative
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.models.layers import conv_norm_relu, init_convolutions
from sftn_fast.nn.precision import average_pooled, in_float32


@register("srrl")
class SRRL(Method):
    """``features mean((p_s - p_t)^2) + regression mean((W p_s + b - z_t)^2)`` with p_s = pool(connector(last map)).

    p_t is the teacher's pooled vector, z_t its logits, W and b its classifier. The connector, a 1x1 convolution with
    BatchNorm and ReLU, learns. Sizes of maps may differ, since they are pooled.

    Defaults: all factors 1 as in the authors' code for ImageNet, without KD. For CIFAR-100, mmclassification's
    distillation toolbox has ``regression=5``.
    """

    family = "vectors"

    def __init__(self, setup: Setup, *, features: NonNegative = 1.0, regression: NonNegative = 1.0) -> None:
        super().__init__(setup)
        self.features, self.regression = features, regression
        setup.require_maps()
        self._student, self._teacher = Classifier("student", setup.student), Classifier("teacher", setup.teacher)
        self.connector = conv_norm_relu(self._student.shape[0], self._teacher.shape[0], 1)
        init_convolutions(self.connector)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours = average_pooled(self.connector(self._student.map(student)), 1).flatten(1)
        theirs = average_pooled(self._teacher.map(teacher), 1).flatten(1)
        matching, regression = terms(ours, theirs, teacher.logits, *classifier_of(self._teacher))
        return self.features * matching + self.regression * regression

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        student, teacher = ("x".join(map(str, each.shape)) for each in (self._student, self._teacher))
        return [f"student's last map {student} in the place of the teacher's {teacher}"]


def classifier_of(teacher: Classifier) -> tuple[Tensor, Tensor | None]:
    """Return weight [C, D] and bias [C] of a frozen classifier, without gradients."""
    layer = teacher.layer
    return layer.weight.detach(), None if layer.bias is None else layer.bias.detach()


@in_float32
def terms(
    student: Tensor, teacher: Tensor, teacher_logits: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return both mean squared errors, of pooled vectors [N, D] and of logits [N, C], each 0-dim."""
    return F.mse_loss(student, teacher), F.mse_loss(F.linear(student, weight, bias), teacher_logits)
