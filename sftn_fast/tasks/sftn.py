"""Student-aware training of a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sftn_fast import ops
from sftn_fast.config import SFTNConfig
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.engine.protocols import ParameterGroup
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
        self.warmup = WarmUp(config.kl_warmup_epochs)

    @property
    def model(self) -> StagedNet:  # type: ignore[override]
        """The teacher without its branches. It is in the state of ``student_aware`` and not registered twice."""
        return self.student_aware.teacher

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the branches, if they learn by settings of their own.

        See :class:`sftn_fast.engine.protocols.GroupedTask`.
        """
        lr, weight_decay = self.config.branch_lr, self.config.branch_weight_decay
        if lr == 1.0 and weight_decay is None:
            return []
        return [ParameterGroup(list(self.student_aware.branches.parameters()), lr, weight_decay)]

    def begin_epoch(self, epoch: int) -> bool:
        """Set the weight of the divergence, see :meth:`Task.begin_epoch`."""
        return self.warmup.begin_epoch(epoch)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`."""
        logits, branch_logits = self.student_aware.forward_branches(images)
        config, apart = self.config, self.config.kl_gradient == "branches"
        terms = ops.sftn_loss(
            logits.detach() if apart else logits,
            branch_logits,
            target,
            config.temperature,
            teacher_weight=0.0 if apart else config.teacher_weight,
            ce_weight=config.ce_weight,
            kl_weight=config.kl_weight * self.warmup.factor,
            direction=config.direction,
            branch_reduction=config.branch_reduction,
        )._asdict()
        if apart:
            terms["total"] = terms["total"] + config.teacher_weight * F.cross_entropy(logits.float(), target)
        return terms
