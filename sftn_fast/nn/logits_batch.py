"""Modules of the losses on logits that relate classes, or the images of a batch: DIST and WKD."""

from __future__ import annotations

from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.nn.loss import OpLoss
from sftn_fast.ops import DISTTerms
from sftn_fast.ops import validation as check


class DISTLoss(OpLoss):
    """Correlation with the teacher's probabilities; see :func:`sftn_fast.ops.dist_loss`."""

    def __init__(self, temperature: float = 4.0, *, inter_weight: float = 1.0, intra_weight: float = 1.0) -> None:
        check.check_temperature(temperature)
        check.check_finite("inter_weight", inter_weight)
        check.check_finite("intra_weight", intra_weight)
        super().__init__(temperature=temperature, inter_weight=inter_weight, intra_weight=intra_weight)

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> DISTTerms:
        """Compute the terms of logits ``[N, C]``."""
        return ops.dist_loss(student_logits, teacher_logits, **self.options)


class WKDLoss(nn.Module):
    """Wasserstein distillation of logits; see :func:`sftn_fast.ops.wkd_loss`.

    Args:
        cost: ``[C, C]``, what it costs to move probability from one class to another.
        temperature: ``T`` of the transport.
        gamma: Weight of the transport.
        regularization: Of the transport's entropy.
        iterations: Steps of Sinkhorn's algorithm.
    """

    cost: Tensor

    def __init__(
        self,
        cost: Tensor,
        temperature: float = 2.0,
        *,
        gamma: float = 30.0,
        regularization: float = 0.05,
        iterations: int = 10,
    ) -> None:
        super().__init__()
        check.check_floating("cost", cost)
        check.check_constant("cost", cost)
        check.check_temperature(temperature)
        check.check_finite("gamma", gamma)
        check.check_positive("regularization", regularization)
        check.check_size("iterations", iterations)
        self.register_buffer("cost", cost)
        self.temperature, self.gamma = temperature, gamma
        self.regularization, self.iterations = regularization, iterations

    def forward(self, student_logits: Tensor, teacher_logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]`` and ``[N]`` int64 classes, 0-dim."""
        return ops.wkd_loss(
            student_logits,
            teacher_logits,
            target,
            self.cost,
            self.temperature,
            gamma=self.gamma,
            regularization=self.regularization,
            iterations=self.iterations,
        )

    def extra_repr(self) -> str:
        """Return the options, for repr."""
        return (
            f"temperature={self.temperature}, gamma={self.gamma}, "
            f"regularization={self.regularization}, iterations={self.iterations}"
        )
