"""DIST: correlation of the predictions with the teacher's, over the classes and over the batch.

Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import RelationalMethod, Setup
from sftn_fast.distillers.options import NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32


@register("dist")
class DIST(RelationalMethod):
    """``T^2 (inter (1 - r over classes) + intra (1 - r over the batch))``; r is the mean Pearson correlation.

    The correlation is that of the probabilities at temperature T.

    Defaults: both factors 1 and temperature 4 as in the authors' code for CIFAR. On ImageNet they use weight 2 and
    temperature 1.
    """

    needs_features = False

    def __init__(
        self, setup: Setup, *, inter: NonNegative = 1.0, intra: NonNegative = 1.0, temperature: Positive = 4.0
    ) -> None:
        super().__init__(setup)
        self.inter, self.intra, self.temperature = inter, intra, temperature

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        logits = self.together(student.logits, teacher.logits)
        ours, theirs = (_probabilities(x, self.temperature) for x in logits)
        apart = self.inter * _uncorrelated(ours, theirs) + self.intra * _uncorrelated(ours.T, theirs.T)
        return self.temperature**2 * apart


@in_float32
def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).softmax(1)


def _uncorrelated(a: Tensor, b: Tensor) -> Tensor:
    """Return 1 - the mean over rows of Pearson's correlation of two matrices."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    # A constant row, as in a batch of one, has norm 0, where the root has no derivative: clamp the square.
    norms = [x.square().sum(1).clamp(min=1e-24).sqrt() for x in (a, b)]
    return 1 - ((a * b).sum(1) / (norms[0] * norms[1] + 1e-8)).mean()
