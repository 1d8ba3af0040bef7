"""Knowledge review: a deeper stage's map is merged into the shallower one's before that is compared."""

from __future__ import annotations

from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.data import Batch
from sftn_fast.distillers.method import PairedMethod, Setup, sum_of
from sftn_fast.distillers.options import Bound
from sftn_fast.distillers.registry import register
from sftn_fast.distillers.warmup import WarmUp
from sftn_fast.models import Features
from sftn_fast.nn.precision import in_float32


@register("reviewkd")
class ReviewKD(PairedMethod):
    """Hierarchical context losses of the paired stages and of the pooled vectors, the student's fused from the end on.

    The student's maps are its stages' outputs, the teacher's those before their ReLU where it has them, as in the
    authors' code. The weight warms up over 20 epochs.

    Source: Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021; defaults of mdistiller. The authors
    have a weight for each pair of networks, from 0.6 to 8.
    """

    needs_preacts = True

    def __init__(self, setup: Setup, *, warmup: Annotated[int, Bound(0)] = 20) -> None:
        super().__init__(setup)
        middle = min(512, setup.student.pooled)
        inputs = [*(pair.student_shape[0] for pair in self.pairs), setup.student.pooled]
        outputs = [*(pair.teacher_shape[0] for pair in self.pairs), setup.teacher.pooled]
        self.fusions = nn.ModuleList(
            Fusion(i, middle, o, fuses=number < len(self.pairs))
            for number, (i, o) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.warmup = WarmUp(warmup)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.warmup.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        maps = [*self.maps(student, teacher), (student.pooled[..., None, None], teacher.pooled[..., None, None])]
        if teacher.preacts is not None:
            before_relu = (t for _, t in self.preact_maps(student, teacher))
            maps = [*((s, t) for (s, _), t in zip(maps, before_relu, strict=False)), maps[-1]]
        losses, deeper = [], None
        for fusion, (ours, theirs) in zip(reversed(self.fusions), reversed(maps), strict=True):
            compared, deeper = fusion(ours, deeper, theirs.shape[2:])
            losses.append(_hierarchical(compared, theirs))
        return self.warmup.factor * sum_of(losses)


class Fusion(nn.Module):
    """A student's map merged with the deeper stages' by learned attention, and brought to the teacher's shape."""

    def __init__(self, channels: int, middle: int, outputs: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None
        for layers in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, layers[0]).weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The map to compare [N, outputs, *size], and the one to pass on [N, middle, *size]."""
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            ours, theirs = self.attention(torch.cat([x, deeper], 1)).split(1, 1)
            x = x * ours + deeper * theirs
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.expand(x), x


@in_float32  # here already: a map that is in several losses has its gradient rounded once
def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error at full size and at 4, 2 and 1 pixels, each level counting half of the one before."""
    total, weight, weights = ops.hint_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            weights += weight
            pooled = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
            total = total + weight * ops.hint_loss(*pooled)
    return total / weights
