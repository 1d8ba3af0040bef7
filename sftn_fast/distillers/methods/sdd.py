"""Scale-decoupled distillation: the teacher's predictions of the whole image and of parts of it.

Wei et al., "Scaled Decoupled Distillation", CVPR 2024.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.classifier import Classifier
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import average_pooled, in_float32

FINEST = 4
"""Regions along a side at the finest scale."""
COARSER = (1, 2)
"""Regions along a side at the other scales, which average the finest ones."""


@register("sdd")
class SDD(Method):
    """``mean over images and regions of w T^2 KL(softmax(t / T) || softmax(s / T))``.

    The regions are the whole last map, its 2 x 2 quarters and 4 x 4 sixteenths, averaged and classified by the
    networks' own classifiers. The weight w is ``complementary`` where the teacher is right about the image and wrong
    about the region, or the other way round, and 1 elsewhere. As in the authors' code, coarser regions are averages of
    the finest ones, and a map of fewer than 4 pixels a side has some of them twice.

    Defaults: temperature 4 and weight 2 of complementary regions as in the authors' code; alone, weight 0.9 and
    cross-entropy 0.1, as there.
    """

    family = "predictions"
    weights_alone = (0.9, 0.1)

    def __init__(self, setup: Setup, *, temperature: Positive = 4.0, complementary: NonNegative = 2.0) -> None:
        super().__init__(setup)
        setup.require_maps()
        self._student, self._teacher = Classifier("student", setup.student), Classifier("teacher", setup.teacher)
        self.temperature, self.complementary = temperature, complementary

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = (
            region_logits(average_pooled(one.map(features), FINEST), one.layer.weight, one.layer.bias)
            for one, features in ((self._student, student), (self._teacher, teacher))
        )
        theirs = theirs.detach()
        losses = ops.kd_loss(ours.flatten(0, 1), theirs.flatten(0, 1), self.temperature, reduction="none")
        return (losses * self._weights(theirs, batch.target)).mean()

    def _weights(self, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the weight of each region [regions * N], given the teacher's logits [regions, N, num_classes]."""
        right = teacher.argmax(2) == target
        return torch.where(right == right[0], 1.0, self.complementary).flatten()

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        student, teacher = ("x".join(map(str, each.shape)) for each in (self._student, self._teacher))
        return [f"student's last map {student} with teacher's {teacher}, each in 1, 4 and 16 regions, classified"]


@in_float32
def region_logits(map_: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the logits of all regions of ``map_`` [N, D, 4, 4], the whole map first: [regions, N, num_classes]."""
    scales = [F.adaptive_avg_pool2d(map_, side) for side in COARSER]
    pooled = torch.cat([scale.flatten(2) for scale in (*scales, map_)], 2)  # [N, D, regions]
    return F.linear(pooled.permute(2, 0, 1), weight, bias)
