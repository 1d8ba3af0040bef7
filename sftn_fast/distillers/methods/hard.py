"""Hard distillation: the class that the teacher predicts, as a second label.

Touvron et al., "Training Data-Efficient Image Transformers & Distillation through Attention", ICML 2021.
"""

from __future__ import annotations

from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.precision import cross_entropy


@register("hard")
class Hard(Method):
    """``-log p_s(c)`` with the teacher's most probable class c, mean over the batch.

    Defaults: alone, weight 0.5 and cross-entropy 0.5, as in the authors' code for ImageNet.
    """

    weights_alone = (0.5, 0.5)
    needs_features = False

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        return cross_entropy(student.logits, teacher.logits.argmax(1))
