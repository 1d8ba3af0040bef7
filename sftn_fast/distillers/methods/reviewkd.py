"""Knowledge review: maps of a stage merged with the deeper ones, compared at several sizes.

Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021.
"""

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
    """``sum over pairs i, and the pooled vectors, of hierarchical(fusion_i(s_i, s_(i+1), ..), t_i)``.

    ``hierarchical`` is a mean squared error at full size and at 4, 2 and 1 pixels. The fusions run from the pooled
    vector to the first stage, and learn. The student's maps are its stages' outputs. The teacher's are those before
    their ReLU where it has them, as in the authors' code. The weight warms up over ``warmup`` epochs.

    Defaults: weight 1 and 20 epochs of warm-up as in mdistiller. The authors tune the weight for each pair of networks,
    from 0.6 to 8.
    """

    family = "feature maps"
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
    """Learned attention that merges a student's map with the deeper stages', and a convolution to the teacher's."""

    def __init__(self, channels: int, middle: int, outputs: int, *, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None
        for layers in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(cast(nn.Conv2d, layers[0]).weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the map to compare [N, outputs, *size], and the one for the next fusion [N, middle, *size]."""
        x = self.reduce(x)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, x.shape[2:])
            ours, theirs = self.attention(torch.cat([x, deeper], 1)).split(1, 1)
            x = x * ours + deeper * theirs
        if x.shape[2:] != size:
            x = F.interpolate(x, size)
        return self.expand(x), x


@in_float32  # so that the gradient of a map that is in several losses is rounded once
def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared error at full size and at 4, 2 and 1 pixels, each level with half the weight before."""
    total, weight, weights = ops.hint_loss(student, teacher), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            weights += weight
            pooled = (F.adaptive_avg_pool2d(x, size) for x in (student, teacher))
            total = total + weight * ops.hint_loss(*pooled)
    return total / weights
