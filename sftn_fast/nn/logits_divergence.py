"""Modules of the losses since 2021 on two rows of logits. Without cross-entropy, as their ops."""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.nn.loss import OpLoss
from sftn_fast.ops import DKDTerms
from sftn_fast.ops import validation as check
from sftn_fast.ops.logits_divergence import KINDS, REDUCTIONS, check_parameters


class DivergenceLoss(OpLoss):
    """A divergence in place of KL, without a factor of ``T^2``; see :func:`sftn_fast.ops.divergence_loss`."""

    def __init__(
        self,
        temperature: float = 1.0,
        *,
        kind: str = "ab",
        alpha: float = 0.8,
        beta: float = 0.3,
        reduction: str = "batchmean",
    ) -> None:
        check.check_temperature(temperature)
        check.check_choice("kind", kind, tuple(KINDS))
        check_parameters(kind, alpha, beta)
        check.check_choice("reduction", reduction, REDUCTIONS)
        super().__init__(temperature=temperature, kind=kind, alpha=alpha, beta=beta, reduction=reduction)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]``, 0-dim, or ``[N]`` with reduction "none"."""
        return ops.divergence_loss(student_logits, teacher_logits, **self.options)


class TTMLoss(OpLoss):
    """Transformed teacher matching; see :func:`sftn_fast.ops.ttm_loss`."""

    def __init__(self, *, gamma: float = 0.1, weighted: bool = False) -> None:
        check.check_temperature(gamma, "gamma")
        check.check_flag("weighted", weighted)
        super().__init__(gamma=gamma, weighted=weighted)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]``, 0-dim."""
        return ops.ttm_loss(student_logits, teacher_logits, **self.options)


class NKDLoss(OpLoss):
    """Normalized distillation; see :func:`sftn_fast.ops.nkd_loss`."""

    def __init__(self, temperature: float = 1.0, *, gamma: float = 1.5) -> None:
        check.check_temperature(temperature)
        check.check_finite("gamma", gamma)
        super().__init__(temperature=temperature, gamma=gamma)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]`` and ``[N]`` int64 classes, 0-dim."""
        return ops.nkd_loss(student_logits, teacher_logits, target, **self.options)


class DKDLoss(OpLoss):
    """Decoupled distillation; see :func:`sftn_fast.ops.dkd_loss`."""

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        target_weight: float = 1.0,
        nontarget_weight: float = 8.0,
        standardize: bool = False,
    ) -> None:
        check.check_temperature(temperature)
        check.check_finite("target_weight", target_weight)
        check.check_finite("nontarget_weight", nontarget_weight)
        check.check_flag("standardize", standardize)
        super().__init__(
            temperature=temperature,
            target_weight=target_weight,
            nontarget_weight=nontarget_weight,
            standardize=standardize,
        )

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> DKDTerms:
        """Compute the terms of logits ``[N, C]`` and ``[N]`` int64 classes."""
        return ops.dkd_loss(student_logits, teacher_logits, target, **self.options)


class RLDLoss(OpLoss):
    """Refined logit distillation; see :func:`sftn_fast.ops.rld_loss`."""

    def __init__(
        self,
        temperature: float = 4.0,
        *,
        confidence_weight: float = 1.0,
        ranking_weight: float = 8.0,
        confidence_temperature: float = 1.0,
    ) -> None:
        check.check_temperature(temperature)
        check.check_finite("confidence_weight", confidence_weight)
        check.check_finite("ranking_weight", ranking_weight)
        check.check_temperature(confidence_temperature, "confidence_temperature")
        super().__init__(
            temperature=temperature,
            confidence_weight=confidence_weight,
            ranking_weight=ranking_weight,
            confidence_temperature=confidence_temperature,
        )

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]`` and ``[N]`` int64 classes, 0-dim."""
        return ops.rld_loss(student_logits, teacher_logits, target, **self.options)
