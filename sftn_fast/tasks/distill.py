"""Distillation from a trained teacher, or along the route of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sftn_fast import models
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.models import StagedNet
from sftn_fast.tasks.base import Task


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
