"""Initialisation of the student's stages by the teacher's, before the classifier trains."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sftn_fast.distillers.method import InitTask
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.models import Features, StagedNet


class StudentStages(InitTask):
    """Task that trains the student's stem and stages, and ``adapters``, on a loss between the networks' features.

    The student's head is frozen and in evaluation mode, as in RepDistiller. At the end the adapters are frozen, since
    nothing uses them later.

    Args:
        student: The network whose stages learn.
        teacher: The network they learn from; not registered as a submodule.
        adapters: Module that learns beside the student, or an empty one.
        loss: ``loss(student features, teacher features)``, 0-dim.
        preact: Whether the loss reads the maps before their ReLU.
    """

    def __init__(
        self,
        student: StagedNet,
        teacher: StagedNet,
        adapters: nn.Module,
        loss: Callable[[Features, Features], Tensor],
        *,
        preact: bool = False,
    ) -> None:
        super().__init__()
        self.student, self.adapters = student, adapters
        self._held, self._loss, self._preact = (teacher,), loss, preact
        student.head.requires_grad_(False)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`InitTask.forward`."""
        (net,) = self._held
        with teacher_mode(net):
            teacher = net.forward_features(images, preact=self._preact)
        total = self._loss(self.student.forward_features(images, preact=self._preact), teacher)
        return {"total": total, "init": total.detach()}

    def train(self, mode: bool = True) -> StudentStages:
        """Set the mode of all but the student's head."""
        super().train(mode)
        self.student.head.eval()
        return self

    def finish(self) -> None:
        """See :meth:`InitTask.finish`."""
        self.student.head.requires_grad_(True)
        self.adapters.requires_grad_(False)
