"""Student-aware training of a teacher."""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.config import SFTNConfig
from sftn_fast.models import StagedNet
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks.base import Task


class SFTNTask(Task):
    """Student-aware training of a teacher: terms ``total``, ``teacher_ce``, ``branch_ce`` and ``branch_kl``.

    See :func:`sftn_fast.ops.sftn_loss` for the formula; ``config`` has its weights and temperature.
    """

    def __init__(self, student_aware: StudentAwareTeacher, config: SFTNConfig) -> None:
        super().__init__()
        self.student_aware = student_aware
        self.config = config

    @property
    def model(self) -> StagedNet:  # type: ignore[override]
        """The teacher without its branches. It is in the state of ``student_aware`` and not registered twice."""
        return self.student_aware.teacher

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`."""
        logits, branch_logits = self.student_aware.forward_branches(images)
        return ops.sftn_loss(
            logits,
            branch_logits,
            target,
            self.config.temperature,
            teacher_weight=self.config.teacher_weight,
            ce_weight=self.config.ce_weight,
            kl_weight=self.config.kl_weight,
            direction=self.config.direction,
            branch_reduction=self.config.branch_reduction,
        )._asdict()
