"""FitNets: the teacher's map of a middle stage, regressed from the student's.

Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import AdaptedHint


@register("fitnet")
class FitNet(Method):
    """``mean((relu(bn(conv(s))) - t)^2)`` of one pair of stages, number ``layer``.

    See :class:`sftn_fast.nn.AdaptedHint`.

    Defaults: second pair, weight 100 and joint training from the first step on, as in RepDistiller. The paper instead
    trains the student up to the hint first, which nobody compares with today.
    """

    family = "feature maps"
    default_weight = 100.0

    def __init__(self, setup: Setup, *, layer: Annotated[int, Bound(1)] = 2) -> None:
        super().__init__(setup)
        if layer > len(setup.pairs):
            raise ValueError(f"fitnet: layer must be from 1 to {len(setup.pairs)}, the pairs of stages, got {layer}")
        self.pair = setup.pairs[layer - 1]
        try:
            self.hint = AdaptedHint(self.pair.student_shape, self.pair.teacher_shape)
        except ValueError as error:
            raise ValueError(f"fitnet: {error}") from None

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return self.hint(student.stages[self.pair.student_stage - 1], teacher.stages[self.pair.teacher_stage - 1])

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        return [str(self.pair)]
