"""Singular vectors: change of a map's leading directions from one stage to the next.

Lee et al., "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import KDSVDLoss


@register("kdsvd")
class KDSVD(PairedMethod):
    """``sum over neighbouring pairs of |exp(-(b_s - a_s)^2 / 8) - exp(-(b_t - a_t)^2 / 8)|^2``, mean over the batch.

    a and b are the ``k`` leading singular vectors of the maps of two neighbouring stages; see
    :class:`sftn_fast.nn.KDSVDLoss`. Both networks need the same channels at every stage. PyTorch's singular value
    decomposition synchronises with a GPU, so a step with this method is not recorded as a CUDA graph.

    Defaults: formula and k = 1 as in RepDistiller, which names no weight; it is 1 here.
    """

    family = "feature maps"
    default_weight = 1.0

    def __init__(self, setup: Setup, *, k: Annotated[int, Bound(1)] = 1) -> None:
        super().__init__(setup)
        if len(self.pairs) < 2:
            raise ValueError(f"kdsvd needs two stages or more in both networks, got {len(self.pairs)}")
        shapes = [[pair.student_shape for pair in self.pairs], [pair.teacher_shape for pair in self.pairs]]
        if [shape[0] for shape in shapes[0]] != [shape[0] for shape in shapes[1]]:
            given = f"got student {shapes[0]} and teacher {shapes[1]}"
            raise ValueError(f"kdsvd needs the same channels at every stage, {given}")
        self.criterion = KDSVDLoss(k)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = zip(*self.maps(student, teacher), strict=True)
        return sum_of(self.criterion(ours, theirs))
