"""Knowledge distillation: the teacher's predictions, softened by a temperature.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import FusedMethod, FusedTerms, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import cross_entropy, in_float32
from sftn_fast.ops.reference.logits import standardized

MIXTURES = ("jsd", "skew_kl", "skew_reverse_kl")
"""Divergences whose parameter is a share."""
ALPHA, BETA = 0.8, 0.3
PARAMETERS = {
    "alpha": (ALPHA, ("ab", "skew_kl", "skew_reverse_kl")),
    "beta": (BETA, ("ab", "jsd")),
}
"""Each parameter's default and the divergences that take it."""


@register("kd")
class KD(FusedMethod):
    """``T^2 KL(softmax(t / T) || softmax(s / T))``, mean over the batch.

    With ``standardize``, each row of the logits is ``(z - mean) / std`` first (Sun et al., "Logit Standardization in
    Knowledge Distillation", CVPR 2024). ``lskd`` is short for ``kd=9:temperature=2:standardize=true``.

    With ``divergence``, another one of :func:`sftn_fast.ops.divergence_loss` takes the place of KL, with its parameters
    ``alpha`` and ``beta``. It keeps the factor T^2.

    Defaults: temperature 4 as in RepDistiller; alone, weight 0.9 and cross-entropy 0.1, as there. The parameters 0.8
    and 0.3 are those of the alpha-beta divergence in its authors' code for resnet56 and resnet20, where T^2 is left
    out: `kd=2:divergence=ab,ce=1` is their weight of 32. Give the others theirs, such as
    `kd:divergence=skew_kl:alpha=0.1`.
    """

    default_weight = 1.0
    weights_alone = (0.9, 0.1)
    published: ClassVar = {
        "wrn_40_2 wrn_16_2": "kd=9:temperature=2:standardize=true",
        "wrn_40_2 wrn_40_1": "kd=9:temperature=2:standardize=true",
        "resnet56 resnet20": "kd=9:temperature=2:standardize=true",
        "resnet110 resnet20": "kd=12:temperature=4:standardize=true",
        "resnet110 resnet32": "kd=9:temperature=2:standardize=true",
        "resnet32x4 resnet8x4": "kd=9:temperature=2:standardize=true",
        "vgg13 vgg8": "kd=9:temperature=3:standardize=true",
        "vgg13 MobileNetV2": "kd=9:temperature=3:standardize=true",
        "resnet32x4 ShuffleV2": "kd=9:temperature=2:standardize=true",
        "resnet34 resnet18": "kd=9:temperature=2:standardize=true,ce=1",
    }

    def __init__(
        self,
        setup: Setup,
        *,
        temperature: Positive = 4.0,
        standardize: bool = False,
        divergence: Literal["kl", "reverse_kl", "jsd", "ab", "tvd", "skew_kl", "skew_reverse_kl"] = "kl",
        alpha: NonNegative = ALPHA,
        beta: NonNegative = BETA,
    ) -> None:
        super().__init__(setup)
        _check_parameters(divergence, alpha, beta)
        self.temperature, self.standardize = temperature, standardize
        self.divergence, self.alpha, self.beta = divergence, alpha, beta

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return self._loss(student.logits, teacher.logits)

    def _loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.divergence == "kl":
            return ops.kd_loss(student, teacher, self.temperature, standardize=self.standardize)
        if self.standardize:
            student, teacher = in_float32(standardized)(student), in_float32(standardized)(teacher)
        apart = ops.divergence_loss(
            student, teacher, self.temperature, kind=self.divergence, alpha=self.alpha, beta=self.beta
        )
        return self.temperature**2 * apart

    def loss_with_ce(
        self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor, *, weight: float, ce_weight: float
    ) -> FusedTerms:
        """See :meth:`FusedMethod.loss_with_ce`."""
        if self.divergence != "kl":
            loss, ce = self._loss(student_logits, teacher_logits), cross_entropy(student_logits, target)
            return FusedTerms(weight * loss + ce_weight * ce, ce=ce.detach(), loss=loss.detach())
        terms = ops.kd_ce_loss(
            student_logits,
            teacher_logits,
            target,
            self.temperature,
            kd_weight=weight,
            ce_weight=ce_weight,
            standardize=self.standardize,
        )
        return FusedTerms(terms.total, ce=terms.ce, loss=terms.kd)


def _check_parameters(divergence: str, alpha: float, beta: float) -> None:
    """Raise ValueError for a parameter that the divergence doesn't take, or a value of one that it does."""
    for name, value in (("alpha", alpha), ("beta", beta)):
        default, kinds = PARAMETERS[name]
        if value != default and divergence not in kinds:
            raise ValueError(f"{name} is for divergence={' or '.join(kinds)}; divergence={divergence} has none")
    if divergence == "ab":
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not 0.01 <= value <= 100:
                raise ValueError(f"{name} of divergence=ab must be from 0.01 to 100, got {value:g}")
    if divergence in MIXTURES:
        name, value = ("beta", beta) if divergence == "jsd" else ("alpha", alpha)
        if value > 1:
            raise ValueError(f"{name} of divergence={divergence} must be at most 1, got {value:g}")
