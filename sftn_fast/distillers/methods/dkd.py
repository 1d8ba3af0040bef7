"""Decoupled distillation: the probability of the true class and the distribution over the others, with two weights.

Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features


@register("dkd")
class DKD(Method):
    """``T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s))``, mean over the batch.

    b is the probability of the label's class against all others, q the distribution over the other classes alone, both
    at temperature T. The weight warms up over ``warmup`` epochs. With ``standardize``, each row of the logits is
    ``(z - mean) / std`` first (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024).

    Defaults: alpha 1, beta 8, temperature 4 and 20 epochs of warm-up as in mdistiller, by the same authors. They tune
    beta for each pair of networks, mostly from 1 to 8.
    """

    needs_features = False
    published: ClassVar = {
        "wrn_40_2 wrn_16_2": "dkd=12:beta=2:temperature=2:standardize=true",
        "wrn_40_2 wrn_40_1": "dkd=12:beta=2:temperature=2:standardize=true",
        "resnet56 resnet20": "dkd=18:beta=2:temperature=3:standardize=true",
        "resnet110 resnet20": "dkd=15:beta=2:temperature=2:standardize=true",
        "resnet110 resnet32": "dkd=15:beta=2:temperature=2:standardize=true",
        "resnet32x4 resnet8x4": "dkd=9:temperature=2:standardize=true",
        "vgg13 vgg8": "dkd=15:beta=2:temperature=2:standardize=true",
        "vgg13 MobileNetV2": "dkd=9:beta=2:temperature=3:standardize=true",
        "ResNet50 MobileNetV2": "dkd=15:beta=2:temperature=2:standardize=true",
        "resnet32x4 ShuffleV2": "dkd=9:temperature=2:standardize=true",
    }

    def __init__(
        self,
        setup: Setup,
        *,
        alpha: NonNegative = 1.0,
        beta: NonNegative = 8.0,
        temperature: Positive = 4.0,
        warmup: Annotated[int, Bound(0)] = 20,
        standardize: bool = False,
    ) -> None:
        super().__init__(setup)
        self.alpha, self.beta, self.temperature, self.standardize = alpha, beta, temperature, standardize
        self.warmup = WarmUp(warmup)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.warmup.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        terms = ops.dkd_loss(
            student.logits,
            teacher.logits,
            batch.target,
            self.temperature,
            target_weight=self.alpha,
            nontarget_weight=self.beta,
            standardize=self.standardize,
        )
        return self.warmup.factor * terms.total
