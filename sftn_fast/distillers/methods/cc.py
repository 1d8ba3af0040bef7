"""Correlation congruence: differences from the teacher, multiplied between neighbours in the batch.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import CorrelationLoss
from sftn_fast.ops._dtype import widened


@register("cc")
class CC(RelationalMethod):
    """``mean over b of sum over d of |s - t|_bd |s - t|_(b+1)d``; s and t are embeddings of the pooled vectors.

    Both linear embeddings learn. See :class:`sftn_fast.nn.CorrelationLoss`.

    Defaults: formula as in RepDistiller, which has it from the author; weight 0.02 and dimension 128 as there.
    """

    family = "relations"
    default_weight = 0.02

    def __init__(self, setup: Setup, *, dim: Annotated[int, Bound(1)] = 128) -> None:
        super().__init__(setup)
        self.embed_student = nn.Linear(setup.student.pooled, dim)
        self.embed_teacher = nn.Linear(setup.teacher.pooled, dim)
        self.criterion = CorrelationLoss()

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        embedded = widened(self.embed_student(student.pooled), self.embed_teacher(teacher.pooled))
        return self.criterion(*self.together(*embedded))
