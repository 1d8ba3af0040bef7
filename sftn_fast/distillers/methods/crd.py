"""Contrastive representation distillation: an image's two embeddings agree, and differ from those of other classes.

Tian et al., "Contrastive Representation Distillation", ICLR 2020.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.gather import ranks, whole_batch
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn import CRDLoss

BANK_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@register("crd")
class CRD(Method):
    """``-mean of [log h(positive) + sum over negatives of log(1 - h(negative))]``, ``h = P / (P + K/N)``, both ways.

    P scores the embedding of one network against a memory of the other network's embeddings of all N training images;
    see :func:`sftn_fast.ops.crd_loss`. Both embeddings of the pooled vectors learn.

    The K negatives of an image are images of other classes, drawn on the device in each step. If the labels of the
    training set were not given, they are collected from the batches. An image that was not seen yet may then be drawn
    although it is of the same class. The positive is the image itself, or with ``mode=relax`` any image of its class,
    drawn in each step.

    Over several processes each one scores its own images. All memories are updated with the whole batch, so that they
    stay equal.

    Defaults: weight 0.8, 16384 negatives, dimension 128, temperature 0.07 and momentum 0.5 as in RepDistiller.
    """

    family = "relations"
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
        mode: Literal["exact", "relax"] = "exact",
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
        self.num_negatives, self.relaxed = negatives, mode == "relax"
        self._has_scored = False
        self.knows_labels = setup.labels is not None
        labels = torch.full((setup.num_samples,), -1) if setup.labels is None else setup.labels
        self.register_buffer("labels", labels, persistent=not self.knows_labels)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        if not self.knows_labels:
            self.labels[whole_batch(batch.index)] = whole_batch(batch.target)
        negatives = ops.sample_negatives(batch.index, self.labels, self.num_negatives, dtype=torch.int32)
        if ranks() == 1 and not self.relaxed:
            return self.criterion(student.pooled, teacher.pooled, batch.index, negatives)
        positives = same_class(batch.index, self.labels) if self.relaxed else batch.index
        return self._shared_loss(student.pooled, teacher.pooled, batch.index, positives, negatives)

    def _shared_loss(
        self, student: Tensor, teacher: Tensor, index: Tensor, positives: Tensor, negatives: Tensor
    ) -> Tensor:
        """Compute the loss of this process's images, and update the memory with those of all processes."""
        memory = self.criterion.memory
        ours, theirs = self.criterion.embed_student(student), self.criterion.embed_teacher(teacher)
        with torch.no_grad():
            all_ours, all_theirs = whole_batch(ours), whole_batch(theirs)
            if ranks() > 1 and not self._has_scored:
                # The first batch sets the memory's normalisers; later ones, also after a resume, keep them.
                scored = whole_batch(positives), whole_batch(negatives)
                ops.crd_loss(all_ours, all_theirs, *scored, memory, update=False)
                self._has_scored = True
        loss = ops.crd_loss(ours, theirs, positives, negatives, memory, update=False)
        if self.training:
            # The rows of the images themselves, also if their positives were other images.
            memory.update(all_ours, all_theirs, whole_batch(index))
        return loss


def same_class(index: Tensor, labels: Tensor) -> Tensor:
    """Draw for each sample of ``index`` [B] one of its class, uniformly and possibly itself: [B] int64.

    ``labels`` [N] are the classes of all samples. Does not synchronise with a GPU.
    """
    in_order, samples = labels.sort()
    own = labels[index]
    first, end = (torch.searchsorted(in_order, own, right=right) for right in (False, True))
    place = first + (torch.rand(len(index), device=index.device, dtype=torch.float64) * (end - first)).long()
    return samples[place]
