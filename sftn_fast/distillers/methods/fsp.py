"""Flow of the solution procedure: products of one stage's channels with the next one's.

Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.initialise import StudentStages
from sftn_fast.distillers.method import Initialisation, Method, Setup, sum_of
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features, StagedNet
from sftn_fast.nn import FSPLoss
from sftn_fast.ops._dtype import widened


@register("fsp")
class FSP(Method):
    """``sum over neighbours (a, b) of stem, stage 1, .., stage S of mean((G_s(a, b) - G_t(a, b))^2)``.

    G holds the products of the channels of both maps, mean over pixels; see :class:`sftn_fast.nn.FSPLoss`. The variant
    ``init`` trains the student's stages on it as an initialisation and adds nothing later; ``joint`` adds it to the
    student's loss instead. Both networks need the same channels at every stage.

    Defaults: variant ``init`` as in the paper and RepDistiller, 30 epochs and weight 50 as in RepDistiller.
    """

    family = "feature maps"
    default_weight = 50.0

    def __init__(
        self, setup: Setup, *, variant: Literal["init", "joint"] = "init", init_epochs: Annotated[int, Bound(1)] = 30
    ) -> None:
        super().__init__(setup)
        setup.require_maps()
        student, teacher = setup.student.stages, setup.teacher.stages
        if [shape[0] for shape in student] != [shape[0] for shape in teacher]:
            raise ValueError(f"fsp needs the same channels at every stage, got student {student} and teacher {teacher}")
        self.init_epochs, self.only_initialises = init_epochs, variant == "init"
        self.criterion = FSPLoss()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return self.flow(student, teacher)

    def flow(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss of either variant."""
        # Each map is in two losses; widened, its gradient is rounded only once.
        ours, theirs = (widened(features.stem, *features.stages) for features in (student, teacher))
        if ours[0].shape[1] != theirs[0].shape[1]:
            shapes = f"student {list(ours[0].shape[1:])} and teacher {list(theirs[0].shape[1:])}"
            raise ValueError(f"fsp needs the same channels in the stems, got {shapes}")
        return sum_of(self.criterion(s, t) for s, t in zip(pairwise(ours), pairwise(theirs), strict=True))

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation | None:
        """See :meth:`Method.initialisation`."""
        if not self.only_initialises:
            return None
        return Initialisation(StudentStages(student, teacher, nn.Module(), self.flow), self.init_epochs)
