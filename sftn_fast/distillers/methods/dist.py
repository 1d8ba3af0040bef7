"""DIST: correlation of the predictions with the teacher's, over the classes and over the batch.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features


@register("dist")
class DIST(RelationalMethod):
    """``T^2 (inter (1 - r over classes) + intra (1 - r over the batch))``; r is the mean Pearson correlation.

    The correlation is that of the probabilities at temperature T.

    Defaults: weight 2, both factors 1 and temperature 4 as in the authors' code for CIFAR. On ImageNet they use
    temperature 1.
    """

    default_weight = 2.0
    needs_features = False

    def __init__(
        self, setup: Setup, *, inter: NonNegative = 1.0, intra: NonNegative = 1.0, temperature: Positive = 4.0
    ) -> None:
        super().__init__(setup)
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        ours, theirs = self.together(student.logits, teacher.logits)
        return ops.dist_loss(ours, theirs, self.temperature, inter_weight=self.inter, intra_weight=self.intra).total
