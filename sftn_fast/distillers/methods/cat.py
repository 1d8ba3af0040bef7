"""Class attention: where in the image the classifier sees each class.

Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch.nn.functional as F
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.classifier import Classifier
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import average_pooled, in_float32


@register("cat")
class CAT(Method):
    """``mean((A_s - A_t)^2)``, where A [N, C, R, R] is a classifier's weight times the last map, pooled to R x R.

    R is ``regions``. The maps are pooled before they are multiplied, which gives the same at a fraction of the cost.
    With ``normalise``, each class's R x R values are divided by their norm. The classifiers' biases are left out; the
    authors train the student without one.

    Defaults: weight 15 and R = 2 as in the authors' code for resnet32x4 and resnet8x4.
    """

    family = "feature maps"
    default_weight = 15.0
    published: ClassVar = {
        "wrn_40_2 wrn_16_2": "cat=12",
        "wrn_40_2 wrn_40_1": "cat=1.5",
        "resnet56 resnet20": "cat=0.7",
        "resnet110 resnet32": "cat=1.8",
        "resnet32x4 resnet8x4": "cat=15",
        "vgg13 vgg8": "cat=4.5",
        "vgg13 MobileNetV2": "cat=15:normalise=true",
        "ResNet50 MobileNetV2": "cat=40:normalise=true",
        "resnet32x4 ShuffleV1": "cat=600:regions=4:normalise=true",
        "resnet32x4 ShuffleV2": "cat=600:regions=4:normalise=true",
        "wrn_40_2 ShuffleV1": "cat=80:regions=4:normalise=true",
        "resnet34 resnet18": "cat=0.5:regions=4",
        "resnet50 MobileNetV1": "cat=10:normalise=true",
    }

    def __init__(self, setup: Setup, *, regions: Annotated[int, Bound(1)] = 2, normalise: bool = False) -> None:
        super().__init__(setup)
        setup.require_maps()
        self._student, self._teacher = Classifier("student", setup.student), Classifier("teacher", setup.teacher)
        shapes = self._student.shape, self._teacher.shape
        smallest = min(side for shape in shapes for side in shape[1:])
        if regions > smallest:
            student, teacher = ("x".join(map(str, shape)) for shape in shapes)
            raise ValueError(
                f"regions must be at most {smallest}, the side of the smaller last map "
                f"(student {student}, teacher {teacher}), got {regions}"
            )
        self.regions, self.normalise = regions, normalise

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = (
            activations(average_pooled(one.map(features), self.regions), one.layer.weight)
            for one, features in ((self._student, student), (self._teacher, teacher))
        )
        return distance(ours, theirs.detach(), self.normalise)

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        student, teacher = ("x".join(map(str, each.shape)) for each in (self._student, self._teacher))
        side = f"{self.regions}x{self.regions}"
        return [f"student's last map {student} with teacher's {teacher}, each pooled to {side} and classified"]


@in_float32
def activations(pooled: Tensor, weight: Tensor) -> Tensor:
    """Return the activations of the classes [N, C, R * R] of a pooled map [N, D, R, R] by a classifier [C, D]."""
    return weight @ pooled.flatten(2)


@in_float32
def distance(student: Tensor, teacher: Tensor, normalise: bool) -> Tensor:
    """Return the mean squared difference of activations [N, C, R * R], each class's divided by its norm if asked to."""
    if normalise:
        student, teacher = F.normalize(student, dim=2), F.normalize(teacher, dim=2)
    return F.mse_loss(student, teacher)
