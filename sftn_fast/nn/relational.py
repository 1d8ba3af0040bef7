"""Modules of the losses on relations between the samples of a batch."""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.nn.loss import OpLoss
from sftn_fast.ops import RKDTerms
from sftn_fast.ops import validation as check


class RKDDistanceLoss(OpLoss):
    """Distances between samples; see :func:`sftn_fast.ops.rkd_distance_loss`."""

    def __init__(self, *, eps: float = 1e-12) -> None:
        check.check_positive("eps", eps, least=0.0)
        super().__init__(eps=eps)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of embeddings ``[B, Ds]`` and ``[B, Dt]``, 0-dim."""
        return ops.rkd_distance_loss(student, teacher, **self.options)


class RKDAngleLoss(OpLoss):
    """Angles between triples of samples; see :func:`sftn_fast.ops.rkd_angle_loss`."""

    def __init__(self, *, eps: float = 1e-12) -> None:
        check.check_positive("eps", eps, least=0.0)
        super().__init__(eps=eps)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of embeddings ``[B, Ds]`` and ``[B, Dt]``, 0-dim."""
        return ops.rkd_angle_loss(student, teacher, **self.options)


class RKDLoss(OpLoss):
    """Distances and angles; see :func:`sftn_fast.ops.rkd_loss`."""

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        check.check_finite("distance_weight", distance_weight)
        check.check_finite("angle_weight", angle_weight)
        super().__init__(distance_weight=distance_weight, angle_weight=angle_weight)

    def forward(self, student: Tensor, teacher: Tensor) -> RKDTerms:
        """Compute the terms of embeddings ``[B, Ds]`` and ``[B, Dt]``."""
        return ops.rkd_loss(student, teacher, **self.options)


class SPLoss(OpLoss):
    """Similarities of samples; see :func:`sftn_fast.ops.sp_loss`."""

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss of features ``[B, ...]``, 0-dim."""
        return ops.sp_loss(student_features, teacher_features)


class PKTLoss(OpLoss):
    """Similarities of samples as probabilities; see :func:`sftn_fast.ops.pkt_loss`."""

    def __init__(self, *, eps: float = 1e-7) -> None:
        check.check_positive("eps", eps, least=1e-18)
        super().__init__(eps=eps)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss of embeddings ``[B, Ds]`` and ``[B, Dt]``, 0-dim."""
        return ops.pkt_loss(student, teacher, **self.options)
