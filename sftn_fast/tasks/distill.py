"""Distillation from a trained teacher, or along the route of its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sftn_fast import models
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.models import StagedNet
from sftn_fast.tasks.base import Task


@dataclass(frozen=True)
class Route:
    """The snapshots of a teacher's training that a student follows, called anchors.

    Each anchor teaches for an equal share of the student's epochs. The paper chooses anchors by a greedy search, which
    is not implemented: give the epochs that it would find.

    Source: Jin et al., "Knowledge Distillation via Route Constrained Optimization", ICCV 2019.
    """

    anchors: Sequence[Path]
    """Exported snapshots, earliest first."""
    epochs: int
    """Number of epochs that the student trains for."""

    def anchor(self, epoch: int) -> Path:
        """Return the snapshot that teaches in ``epoch``, counted from 0."""
        return self.anchors[min(epoch * len(self.anchors) // self.epochs, len(self.anchors) - 1)]


class DistillTask(Task):
    """Distillation into ``student``: the terms of ``distiller``, which was built for that student.

    Student and adapters are in one module. A wrapper that averages gradients over processes or computes in another
    precision needs that. With a ``route``, the teacher's weights change at some epochs. Layers that a method trained on
    the teacher earlier, such as FT's paraphraser, stay those of the finished teacher. With ``splits`` the terms have
    ``labels`` too, see :attr:`Distiller.splits`.

    Raises:
        ValueError: the distiller was built for another student.
    """

    def __init__(
        self, student: StagedNet, distiller: Distiller, route: Route | None = None, *, splits: bool = False
    ) -> None:
        super().__init__()
        distiller.splits = splits
        if distiller.student is not student:
            raise ValueError("the distiller was built for another student than the one given")
        self.model = student
        self.distiller = distiller
        self.views, self.strong_view = 1 + distiller.strong_view, distiller.strong_view
        self.route = route
        self._anchor: Path | None = None  # the anchor that the teacher's weights are from

    def store_frozen(self, autocast: torch.autocast) -> Callable[[], None]:
        """Store the teachers' weights in the dtype of ``autocast``, see :meth:`Distiller.store_teachers`."""
        return self.distiller.store_teachers(autocast)

    def begin_epoch(self, epoch: int) -> bool:
        """Load the anchor of ``epoch`` if it is a new one, see :meth:`Task.begin_epoch`."""
        anchor = self.route.anchor(epoch) if self.route is not None else None
        moved = anchor is not None and anchor != self._anchor
        if anchor is not None and moved:
            self.distiller.teacher.load_state_dict(models.load(anchor).state_dict())
            self._anchor = anchor
        return self.distiller.begin_epoch(epoch) or moved

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`."""
        return self.distiller(images, target, index)
