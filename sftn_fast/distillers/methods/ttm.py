"""Transformed teacher matching: a smoothed teacher, and a student whose temperature stays 1.

Zheng & Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("ttm")
class TTM(Method):
    """``KL(softmax(gamma t) || softmax(s))``, mean over the batch.

    With ``weighted`` (WTTM), an image counts the more the smoother the teacher's prediction is: times
    ``sum_c p_t(c)^gamma``. These factors are large, so its weight must be smaller: ``wttm`` is short for
    ``ttm=3:weighted=true``.

    Defaults: weight 100 and gamma 0.1 as the authors give them for resnet32x4 and resnet8x4.
    """

    default_weight = 100.0
    needs_features = False
    published: ClassVar = {
        "wrn_40_2 wrn_16_2": ("ttm=101:gamma=0.1", "wttm=4:gamma=0.1"),
        "wrn_40_2 wrn_40_1": ("ttm=76:gamma=0.1", "wttm=3:gamma=0.1"),
        "resnet56 resnet20": ("ttm=7:gamma=0.3", "wttm=1.5:gamma=0.3"),
        "resnet110 resnet20": ("ttm=8:gamma=0.2", "wttm=2:gamma=0.2"),
        "resnet110 resnet32": ("ttm=33:gamma=0.1", "wttm=1.5:gamma=0.1"),
        "resnet32x4 resnet8x4": ("ttm=100:gamma=0.1", "wttm=3:gamma=0.1"),
        "vgg13 vgg8": ("ttm=45:gamma=0.1", "wttm=2.25:gamma=0.1"),
        "vgg13 MobileNetV2": ("ttm=16:gamma=0.2", "wttm=3:gamma=0.2"),
        "ResNet50 MobileNetV2": ("ttm=20:gamma=0.2", "wttm=5:gamma=0.2"),
        "ResNet50 vgg8": ("ttm=70:gamma=0.1", "wttm=2:gamma=0.1"),
        "resnet32x4 ShuffleV1": ("ttm=12:gamma=0.2", "wttm=1.4:gamma=0.2"),
        "resnet32x4 ShuffleV2": ("ttm=40:gamma=0.4", "wttm=16:gamma=0.4"),
        "wrn_40_2 ShuffleV1": ("ttm=8:gamma=0.3", "wttm=3:gamma=0.3"),
        "resnet34 resnet18": "wttm=1.6:gamma=0.8",
        "resnet50 MobileNetV1": "wttm=3.5:gamma=0.7",
    }

    def __init__(self, setup: Setup, *, gamma: Positive = 0.1, weighted: bool = False) -> None:
        super().__init__(setup)
        self.gamma, self.weighted = gamma, weighted

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return ops.ttm_loss(student.logits, teacher.logits, gamma=self.gamma, weighted=self.weighted)
