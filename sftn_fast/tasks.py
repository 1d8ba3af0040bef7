"""What one stage of training computes: a network to train and the terms of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import models, ops
from sftn_fast.config import SFTNConfig
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.distillers.networks import check_classes
from sftn_fast.models import StagedNet
from sftn_fast.sftn import StudentAwareTeacher


class Task(nn.Module):
    """The module that a stage trains. Each of its parameters that requires a gradient learns.

    Attributes:
        model: What is evaluated and exported; in evaluation mode it gives logits [N, num_classes].
    """

    model: StagedNet

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Loss of one batch.

        Args:
            images: [N, C, H, W].
            target: Labels [N], int64.
            index: The images' numbers in the training data [N], int64.

        Returns:
            0-dim float32 terms by name, under autocast too. ``total`` carries the gradient, the others are detached.
        """
        raise NotImplementedError

    def begin_epoch(self, epoch: int) -> bool:
        """Told by the engine before each epoch, counted from 0; whether a step computes otherwise than before it.

        That is: with other numbers or tensors than those that the last step read. A step replayed from a CUDA graph
        knows of no change but in the values of the same tensors, and is captured anew.
        """
        return False


class SupervisedTask(Task):
    """Cross-entropy with the labels: terms ``total`` and ``ce``, which are equal.

    Raises:
        ValueError: The network has one class.
    """

    def __init__(self, model: StagedNet) -> None:
        super().__init__()
        check_classes(model)
        self.model = model

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Task.forward`."""
        total = F.cross_entropy(self.model(images).float(), target)
        return {"total": total, "ce": total.detach()}


class SFTNTask(Task):
    """Student-aware training of a teacher: terms ``total``, ``teacher_ce``, ``branch_ce`` and ``branch_kl``.

    See :func:`sftn_fast.ops.sftn_loss` for the formula; ``config`` has its weights.
    """

    def __init__(self, student_aware: StudentAwareTeacher, config: SFTNConfig) -> None:
        super().__init__()
        self.student_aware = student_aware
        self.config = config

    @property
    def model(self) -> StagedNet:  # type: ignore[override]
        """The teacher without its branches. Not registered beside ``student_aware``, whose state has it."""
        return self.student_aware.teacher

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Task.forward`."""
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


@dataclass(frozen=True)
class Route:
    """A teacher's way through its training, for a student to follow (Jin et al., "Knowledge Distillation via Route
    Constrained Optimization", ICCV 2019).

    Each anchor, a snapshot of the teacher, teaches for an equal share of the student's epochs. The paper's choice of
    anchors by a greedy search is not offered: give the epochs that it would find.
    """

    anchors: Sequence[Path]
    """Exported snapshots, the earliest first."""
    epochs: int
    """Epochs that the student trains for."""

    def anchor(self, epoch: int) -> Path:
        """The snapshot that teaches in ``epoch``, counted from 0."""
        return self.anchors[min(epoch * len(self.anchors) // self.epochs, len(self.anchors) - 1)]


class DistillTask(Task):
    """Distillation into ``student``: the terms of ``distiller``, which holds that student.

    Student and adapters in one module, as a wrapper needs them that averages gradients over processes or computes in
    another precision. With a ``route`` the teacher's weights change as the epochs go by; what a method had trained on
    the teacher before, as FT its paraphraser, stays that of the finished teacher.

    Raises:
        ValueError: The distiller was built for another student.
    """

    def __init__(self, student: StagedNet, distiller: Distiller, route: Route | None = None) -> None:
        super().__init__()
        if distiller.student is not student:
            raise ValueError("the distiller was built for another student than the one given")
        self.model = student
        self.distiller = distiller
        self.route = route
        self._anchor: Path | None = None  # the one whose weights the teacher has

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Task.begin_epoch`."""
        anchor = self.route.anchor(epoch) if self.route is not None else None
        moved = anchor is not None and anchor != self._anchor
        if anchor is not None and moved:
            self.distiller.teacher.load_state_dict(models.load(anchor).state_dict())
            self._anchor = anchor
        return self.distiller.begin_epoch(epoch) or moved

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`Task.forward`."""
        return self.distiller(images, target, index)
