"""Self-supervised distillation: the teacher's predictions and similarities of rotated images.

Xu et al., "Knowledge Distillation Meets Self-Supervision", ECCV 2020.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import Initialisation, InitTask, Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative, Positive
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.teacher_mode import teacher_mode
from sftn_fast.models import Features, StagedNet
from sftn_fast.nn.precision import in_float32

ROTATIONS = 3  # by 90, 180 and 270 degrees


@register("sskd")
class SSKD(Method):
    """``kd KD(images) + tf KD(rotated images) + ss KD(similarities of rotated images to the images)``.

    Both networks see the batch and its three rotations. A similarity is the cosine between the outputs of a head on the
    pooled vectors. In an initialisation the teacher's head learns to tell which image a rotated one comes from; the
    student's head learns beside the student. All rotated images that the teacher gets right count. Of the others a
    share counts (``tf_share``, ``ss_share``): those whose true answer it ranks highest, ties in the batch's order.

    Rotated images are rotations of the batch, crop and flip included; the authors crop each one separately. They report
    the best epoch.

    Defaults: as in the authors' code; alone, cross-entropy 0.1.
    """

    family = "relations"
    weights_alone = (1.0, 0.1)

    def __init__(
        self,
        setup: Setup,
        *,
        kd: NonNegative = 0.9,
        tf: NonNegative = 2.7,
        ss: NonNegative = 10.0,
        temperature: Positive = 4.0,
        ss_temperature: Positive = 0.5,
        tf_share: NonNegative = 1.0,
        ss_share: NonNegative = 0.75,
        init_epochs: Annotated[int, Bound(1)] = 60,
    ) -> None:
        super().__init__(setup)
        self.kd, self.tf, self.ss = kd, tf, ss
        self.temperature, self.ss_temperature = temperature, ss_temperature
        self.tf_share, self.ss_share, self.init_epochs = tf_share, ss_share, init_epochs
        self.student_head, self.teacher_head = Head(setup.student.pooled), Head(setup.teacher.pooled)

    def extra_images(self, images: Tensor) -> Tensor:
        """See :meth:`Method.extra_images`."""
        return rotations(images)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        count = len(batch.target)
        plain = ops.kd_loss(student.logits[:count], teacher.logits[:count], self.temperature)
        s_rotated, t_rotated = student.logits[count:], teacher.logits[count:]
        kept = counted(t_rotated, batch.target.repeat(ROTATIONS), self.tf_share)
        transformed = _mean(ops.kd_loss(s_rotated, t_rotated, self.temperature, reduction="none"), kept)
        ours = similarities(self.student_head(student.pooled), count)
        with torch.no_grad():
            theirs = similarities(self.teacher_head(teacher.pooled), count)
        own = torch.arange(count, device=theirs.device).repeat(ROTATIONS)
        kept = counted(theirs, own, self.ss_share)
        alike = _mean(ops.kd_loss(ours, theirs, self.ss_temperature, reduction="none"), kept)
        return self.kd * plain + self.tf * transformed + self.ss * alike

    def initialisation(self, student: StagedNet, teacher: StagedNet) -> Initialisation:
        """See :meth:`Method.initialisation`."""
        drops = {self.init_epochs // 2, self.init_epochs * 3 // 4} - {0}  # 30 and 45 of 60
        return Initialisation(TellApart(self.teacher_head, teacher), self.init_epochs, 0.05, sorted(drops))


class Head(nn.Sequential):
    """Two linear layers on the pooled vector; the output is as long as the input."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, features))


class TellApart(InitTask):
    """Task that trains a head on the frozen teacher to tell which image of the batch a rotated one comes from."""

    def __init__(self, head: Head, teacher: StagedNet) -> None:
        super().__init__()
        self.head, self._held = head, (teacher,)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """See :meth:`InitTask.forward`."""
        count = len(images)
        (teacher,) = self._held
        with teacher_mode(teacher):
            pooled = teacher.forward_features(torch.cat([images, rotations(images)])).pooled
        own = torch.arange(count, device=images.device).repeat(ROTATIONS)
        total = F.cross_entropy(similarities(self.head(pooled), count), own)
        return {"total": total, "init": total.detach()}

    def finish(self) -> None:
        """See :meth:`InitTask.finish`."""
        self.head.requires_grad_(False)


def rotations(images: Tensor) -> Tensor:
    """Rotate all square images [N, C, H, W] by 90, then by 180, then by 270 degrees: [3 N, C, H, W]."""
    return torch.cat([images.rot90(quarters, (2, 3)) for quarters in range(1, ROTATIONS + 1)])


@in_float32
def similarities(embeddings: Tensor, count: int) -> Tensor:
    """Return cosines [3 N, N] of the rotated images' embeddings with those of the N = ``count`` images before them."""
    directions = F.normalize(embeddings, dim=1, eps=1e-8)
    return directions[count:] @ directions[:count].T


def counted(scores: Tensor, truth: Tensor, share: float) -> Tensor:
    """Return which rows of ``scores`` [M, C] count, as a mask [M].

    These are all rows in which ``truth`` [M] has the highest score, and of the others the ``share`` in which it ranks
    highest.
    """
    true_score = scores.gather(1, truth[:, None])
    rank = (scores > true_score).sum(1)
    wrong = (rank > 0).sum()
    keep = len(scores) - wrong + (wrong * share).long()
    place = torch.empty_like(rank).scatter_(0, rank.argsort(stable=True), torch.arange(len(rank), device=rank.device))
    return place < keep


def _mean(losses: Tensor, kept: Tensor) -> Tensor:
    return (losses * kept).sum() / kept.sum().clamp(min=1)
