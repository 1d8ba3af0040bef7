"""Contrastive representation distillation: an image's two embeddings agree, and differ from other classes' images."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import CRDLoss

BANK_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@register("crd")
class CRD(Method):
    """:class:`sftn_fast.nn.CRDLoss` of the pooled vectors. Both embeddings learn; a memory holds all training images.

    Negatives are images of other classes, drawn for each image on the device. Where the labels of the training set were
    not given, they are learned from the batches; an image that was not seen yet may then be drawn although it is of the
    same class.

    Source: Tian et al., "Contrastive Representation Distillation", ICLR 2020; weight 0.8, 16384 negatives, temperature
    0.07 and momentum 0.5 as in RepDistiller.
    """

    default_weight = 0.8
    labels: Tensor

    def __init__(
        self,
        setup: Setup,
        *,
        negatives: Annotated[int, Bound(1)] = 16384,
        dim: Annotated[int, Bound(1)] = 128,
        temperature: Positive = 0.07,
        momentum: NonNegative = 0.5,
        bank: Literal["float32", "bfloat16", "float16"] = "float32",
    ) -> None:
        super().__init__(setup)
        self.criterion = CRDLoss(
            setup.student.pooled,
            setup.teacher.pooled,
            setup.num_samples,
            dim=dim,
            temperature=temperature,
            momentum=momentum,
            bank_dtype=BANK_DTYPES[bank],
        )
        self.num_negatives = negatives
        self.knows_labels = setup.labels is not None
        labels = torch.full((setup.num_samples,), -1) if setup.labels is None else setup.labels
        self.register_buffer("labels", labels, persistent=not self.knows_labels)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        if not self.knows_labels:
            self.labels[batch.index] = batch.target
        negatives = ops.sample_negatives(batch.index, self.labels, self.num_negatives, dtype=torch.int32)
        return self.criterion(student.pooled, teacher.pooled, batch.index, negatives)
