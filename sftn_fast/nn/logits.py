"""Modules of the losses on logits. The student comes first, then the teacher, as in :mod:`sftn_fast.ops`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sftn_fast import ops
from sftn_fast.nn.loss import OpLoss
from sftn_fast.ops import KDTerms, SFTNTerms
from sftn_fast.ops import validation as check
from sftn_fast.ops._logits_arguments import check_temperature_tensor
from sftn_fast.ops.logits import BRANCH_REDUCTIONS, DIRECTIONS, REDUCTIONS, check_weights


class KDLoss(OpLoss):
    """Distillation on softened logits; see :func:`sftn_fast.ops.kd_loss`, whose temperature may be a Parameter."""

    def __init__(
        self, temperature: float | Tensor = 4.0, *, reduction: str = "batchmean", standardize: bool = False
    ) -> None:
        _check_temperature(temperature)
        check.check_choice("reduction", reduction, REDUCTIONS)
        check.check_flag("standardize", standardize)
        super().__init__(temperature=temperature, reduction=reduction, standardize=standardize)
        self.temperature = temperature  # a Parameter learns and moves with the module

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]`` or ``[N, C, d1, ...]``, 0-dim, or one for each row or pixel."""
        return ops.kd_loss(student_logits, teacher_logits, **self.options)


class KDCELoss(OpLoss):
    """Distillation and cross-entropy in one pass; see :func:`sftn_fast.ops.kd_ce_loss`."""

    def __init__(
        self,
        temperature: float | Tensor = 4.0,
        *,
        kd_weight: float = 0.9,
        ce_weight: float = 0.1,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        standardize: bool = False,
    ) -> None:
        _check_temperature(temperature)
        check_weights(kd_weight=kd_weight, ce_weight=ce_weight)
        check.check_integer("ignore_index", ignore_index)
        check.check_fraction("label_smoothing", label_smoothing)
        check.check_flag("standardize", standardize)
        super().__init__(
            temperature=temperature,
            kd_weight=kd_weight,
            ce_weight=ce_weight,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            standardize=standardize,
        )
        self.temperature = temperature  # a Parameter learns and moves with the module

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> KDTerms:
        """Compute the terms of logits ``[N, C]`` and a target, ``[N]`` int64 classes or ``[N, C]`` probabilities.

        Logits may be those of pixels, ``[N, C, d1, ...]``, with classes ``[N, d1, ...]``.
        """
        return ops.kd_ce_loss(student_logits, teacher_logits, target, **self.options)


class SFTNLoss(OpLoss):
    """Loss of a student-friendly teacher; see :func:`sftn_fast.ops.sftn_loss`."""

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        teacher_weight: float = 1.0,
        ce_weight: float = 1.0,
        kl_weight: float = 3.0,
        direction: str = "teacher_to_branch",
        branch_reduction: str = "mean",
    ) -> None:
        check.check_temperature(temperature)
        check_weights(teacher_weight=teacher_weight, ce_weight=ce_weight, kl_weight=kl_weight)
        check.check_choice("direction", direction, DIRECTIONS)
        check.check_choice("branch_reduction", branch_reduction, BRANCH_REDUCTIONS)
        super().__init__(
            temperature=temperature,
            teacher_weight=teacher_weight,
            ce_weight=ce_weight,
            kl_weight=kl_weight,
            direction=direction,
            branch_reduction=branch_reduction,
        )

    def forward(self, teacher_logits: Tensor, branch_logits: Sequence[Tensor] | Tensor, target: Tensor) -> SFTNTerms:
        """Compute the terms of the teacher ``[N, C]``, K branches ``[N, C]`` and a target, as :class:`KDCELoss`."""
        return ops.sftn_loss(teacher_logits, branch_logits, target, **self.options)


def _check_temperature(temperature: float | Tensor) -> None:
    if isinstance(temperature, Tensor):
        check_temperature_tensor(temperature)
    else:
        check.check_temperature(temperature)
