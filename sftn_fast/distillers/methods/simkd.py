"""SimKD: the student keeps the teacher's classifier, and a connector learns to give it the teacher's last map.

Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", CVPR 2022.
"""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.classifier import Classifier
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.models.reused_head import ReusedHead
from sftn_fast.nn.precision import average_pooled, in_float32


@register("simkd")
class SimKD(Method):
    """``mean((connector(s) - t)^2)`` of the last maps, the larger one average-pooled to the size of the smaller one.

    The student predicts by the mean of the connected map and a frozen copy of the teacher's classifier. Both are a part
    of the exported network; its own classifier is removed. The connector is 1x1, 3x3 and 1x1 convolution, each with
    BatchNorm and ReLU, and ``1 / factor`` of the teacher's channels inside. The maps are those that the classifiers
    average. The connector ends in a ReLU, so a teacher whose map can be negative is met only in part.

    Defaults: factor 2 as in the authors' code; alone, cross-entropy 0, as there.
    """

    family = "feature maps"
    weights_alone = (1.0, 0.0)
    replaces_head = True

    def __init__(self, setup: Setup, *, factor: Annotated[int, Bound(1)] = 2) -> None:
        super().__init__(setup)
        setup.require_maps()
        student, self._teacher = Classifier("student", setup.student), Classifier("teacher", setup.teacher)
        if isinstance(setup.student.net.head, ReusedHead):
            raise ValueError("the student has the classifier of a teacher already: build a new student")
        channels = self._teacher.shape[0]
        if factor > channels:
            raise ValueError(f"factor must be at most {channels}, the channels of the teacher's last map, got {factor}")
        self.middle = channels // factor
        self._shapes = student.shape, self._teacher.shape
        ours, theirs = (shape[1:] for shape in self._shapes)
        if min(ours, theirs) != tuple(map(min, ours, theirs)):
            raise ValueError(f"one of the last maps must be the smaller one, got student {ours} and teacher {theirs}")
        self._size = min(ours, theirs)
        # A tuple, so that nn.Module does not register the student.
        self._held = (setup.student.net,)

    def build_student_head(self) -> ReusedHead:
        """See :meth:`Method.build_student_head`."""
        (net,), (student, teacher) = self._held, self._shapes
        head = ReusedHead(
            net.head,
            channels=student[0],
            middle=self.middle,
            features=teacher[0],
            num_classes=net.num_classes,
            size=None if student[1:] == self._size else self._size,
        )
        head.copy_classifier(self._teacher.layer)
        return head

    def begin_epoch(self, epoch: int) -> bool:
        """Follow a teacher whose weights have changed, see :meth:`Method.begin_epoch`."""
        head = self._held[0].head
        if isinstance(head, ReusedHead):
            head.copy_classifier(self._teacher.layer)
        return False

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = student.unpooled, self._teacher.map(teacher)
        assert ours is not None
        if theirs.shape[2:] != ours.shape[2:]:
            theirs = average_pooled(theirs, (ours.shape[2], ours.shape[3]))
        return distance(ours, theirs)

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        student, teacher = ("x".join(map(str, shape)) for shape in self._shapes)
        return [f"student's last map {student}, connected to teacher's {teacher} and classified as that"]


distance = in_float32(F.mse_loss)
"""Mean squared difference of two maps, in float32."""
