"""Activation boundaries: which neurons fire, regardless of their strength.

Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries", AAAI 2019.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.distillers.initialise import StudentStages
from sftn_fast.distillers.method import Initialisation, PairedMethod, Setup, sum_of
from sftn_fast.distillers.options import Bound, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features, StagedNet
from sftn_fast.nn import hint_convolution


@register("ab")
class AB(PairedMethod):
    """``3/1000 sum over pairs i = 1..L of 2^(i - L) ab_loss(connector_i(s_i), t_i)``, as an initialisation only.

    :func:`sftn_fast.ops.ab_loss` compares signs of the maps before their ReLU. The connector is a convolution and a
    BatchNorm where the maps' shapes differ, and is frozen after the initialisation. While the student trains, the
    method adds nothing.

    Defaults: 30 epochs of initialisation at the student's constant learning rate, then cross-entropy alone, as in
    RepDistiller. The authors' second step uses distillation alone, at temperature 3 and not multiplied by its square:
    ``ab,kd=0.1111:temperature=3,ce=0``.
    """

    family = "feature maps"
    default_weight = 1.0
    only_initialises = True

    def __init__(self, setup: Setup, *, margin: Positive = 1.0, init_epochs: Annotated[int, Bound(1)] = 30) -> None:
        super().__init__(setup)
        self.margin, self.init_epochs = margin, init_epochs
        self.connectors = nn.ModuleList(_connector(pair.student_shape, pair.teacher_shape) for pair in self.pairs)

    def boundaries(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss of the initialisation."""
        maps = list(zip(self.connectors, self.preact_maps(student, teacher), strict=True))
        weights = [3e-3 * 2.0 ** (i - len(maps) + 1) for i in range(len(maps))]
        return sum_of(
            weight * ops.ab_loss(connector(s), t, margin=self.margin)
            for weight, (connector, (s, t)) in zip(weights, maps, strict=True)
        )

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation:
        """See :meth:`Method.initialisation`."""
        task = StudentStages(student, teacher, self.connectors, self.boundaries, preact=True)
        return Initialisation(task, self.init_epochs)


def _connector(student: tuple[int, int, int], teacher: tuple[int, int, int]) -> nn.Module:
    if student == teacher:
        return nn.Identity()
    try:
        convolution = hint_convolution(student, teacher)
    except ValueError as error:
        raise ValueError(f"ab: {error}") from None
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher[0]))
