"""Multi-level logit distillation: predictions of images, and of batches and classes as a whole, at five temperatures.

Jin et al., "Multi-Level Logit Distillation", CVPR 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup, TwoViewMethod, sum_of
from sftn_fast.distillers.options import Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32

BESIDE = (3.0, 5.0, 2.0, 6.0)
"""Temperatures beside the one that is set, in the order of the code."""
OF_STRONG_VIEW = 3
"""Number of temperatures, the first ones, at which the code reads the strong view where the paper means it."""


@register("mlld")
class MLLD(TwoViewMethod, RelationalMethod):
    """``sum over T of T^2 KL(weak views) m + T^2 KL(strong views) + CC m_c + BC m``, at T, 3, 5, 2 and 6.

    With P the predictions of the weak views, CC is the squared distance of ``P^T P`` from the teacher's over the number
    of classes, and BC that of ``P P^T`` over the number of images. The masks m and m_c leave out what the teacher is
    surer of than the median, among images and among classes. The cross-entropy is the sum of both views'.

    The published code multiplies losses that are reduced already, so a mask only scales its term, by about a half. It
    also reads the weak view in the second term at temperatures 2 and 6. That is the default, for the published
    accuracies. With ``per_row``, masks leave out images and classes, and the second term is that of strong views alone.
    With ``standardize``, each row of the logits is ``(z - mean) / std`` in both KL terms (Sun et al., "Logit
    Standardization in Knowledge Distillation", CVPR 2024).

    Defaults: temperature 4 as in the authors' code; alone, weight 0.9 and cross-entropy 0.1, as there for CIFAR-100.
    """

    family = "predictions"
    weights_alone = (0.9, 0.1)
    published: ClassVar = {
        "wrn_40_2 wrn_16_2": ("mlld", "mlld=9:temperature=2:standardize=true,ce=0.1"),
        "wrn_40_2 wrn_40_1": ("mlld", "mlld=9:temperature=2:standardize=true,ce=0.1"),
        "resnet56 resnet20": ("mlld", "mlld=9:temperature=2:standardize=true,ce=0.1"),
        "resnet110 resnet32": ("mlld", "mlld=9:temperature=2:standardize=true,ce=0.1"),
        "resnet32x4 resnet8x4": ("mlld", "mlld=9:temperature=2:standardize=true,ce=0.1"),
        "vgg13 vgg8": ("mlld", "mlld=6:temperature=2:standardize=true,ce=0.1"),
        "vgg13 MobileNetV2": ("mlld", "mlld=6:temperature=2:standardize=true,ce=0.1"),
        "resnet32x4 ShuffleV2": ("mlld", "mlld=6:temperature=2:standardize=true,ce=0.1"),
        "resnet34 resnet18": "mlld=0.5:temperature=1,ce=0.5",
        "resnet50 MobileNetV1": "mlld=0.5:temperature=1,ce=0.5",
    }

    def __init__(
        self, setup: Setup, *, temperature: Positive = 4.0, per_row: bool = False, standardize: bool = False
    ) -> None:
        super().__init__(setup)
        self.temperatures = (temperature, *BESIDE)
        self.per_row, self.standardize = per_row, standardize

    def loss_of_views(self, student: Sequence[Features], teacher: Sequence[Features], batch: Batch) -> Tensor:
        """See :meth:`TwoViewMethod.loss_of_views`."""
        logits = (features.logits for sides in (student, teacher) for features in sides)
        return self._loss_of_logits(*self.together(*logits))

    @in_float32  # once for all terms, so that a gradient is rounded once
    def _loss_of_logits(self, s_weak: Tensor, s_strong: Tensor, t_weak: Tensor, t_strong: Tensor) -> Tensor:
        images, classes = masks(t_weak)
        losses = []
        for number, temperature in enumerate(self.temperatures):
            weak = self._kl(s_weak, t_weak, temperature)
            reads_strong = self.per_row or number < OF_STRONG_VIEW
            losses += [
                self._masked(weak, images) / len(weak),
                (self._kl(s_strong, t_strong, temperature) if reads_strong else weak).mean(),
                self._masked(class_distances(s_weak, t_weak, temperature), classes),
                self._masked(image_distances(s_weak, t_weak, temperature), images),
            ]
        return sum_of(losses)

    def _kl(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the divergence of each image [N]."""
        return ops.kd_loss(student, teacher, temperature, reduction="none", standardize=self.standardize)

    def _masked(self, losses: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of ``losses`` [M] under ``mask`` [M], or times its mean."""
        return (losses * mask).sum() if self.per_row else losses.sum() * mask.mean()


def masks(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return which images [N] and classes [C] count: those of which the teacher is no surer than of the median one."""
    predictions = teacher.detach().softmax(1)
    sure_of_image, sure_of_class = predictions.amax(1), predictions.sum(0)
    return (sure_of_image <= _median(sure_of_image)).to(teacher), (sure_of_class <= _median(sure_of_class)).to(teacher)


def _median(values: Tensor) -> Tensor:
    """Return the median; of an even number of values the mean of the two in the middle."""
    ordered = values.sort().values
    return (ordered[(len(values) - 1) // 2] + ordered[len(values) // 2]) / 2


def class_distances(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the networks' squared distance in how each class goes with all C, divided by C: [C]."""
    s, t = ((logits / temperature).softmax(1) for logits in (student, teacher))
    return (t.T @ t - s.T @ s).square().mean(1)


def image_distances(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the networks' squared distance in how each image is like all N, divided by N: [N]."""
    s, t = ((logits / temperature).softmax(1) for logits in (student, teacher))
    return (t @ t.T - s @ s.T).square().mean(1)
