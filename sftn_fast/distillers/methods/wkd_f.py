"""Wasserstein distance of features: mean and deviation of each channel, as Gaussians.

Lv et al., "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", NeurIPS 2024.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from sftn_fast.data import Batch
from sftn_fast.distillers.decay import CosineDecay
from sftn_fast.distillers.method import Method, Setup
from sftn_fast.distillers.options import Bound, NonNegative
from sftn_fast.distillers.registry import register
from sftn_fast.models import Features
from sftn_fast.nn.adapted_hint import hint_convolution
from sftn_fast.nn.precision import in_float32

EPS = 1e-5
"""Added to a variance."""


@register("wkd_f")
class WKDF(Method):
    """``(ratio sum (m_s - m_t)^2 + sum (d_s - d_t)^2) / (N G^2)``; the sums run over images, cells and channels.

    m and d are mean and standard deviation of a channel in each of G x G cells of the last stage's map; G is ``grid``.
    The student's map passes a projector, a convolution to the teacher's shape as in
    :class:`sftn_fast.nn.AdaptedHint`, with BatchNorm and ReLU, which learns. The weight falls by a
    cosine from epoch ``decay_start`` to 0 at ``decay_end``; equal epochs keep it constant.

    Defaults: weight 0.08, ratio 4, one cell and the decay of the last 90 of 240 epochs as in the authors' code for
    resnet32x4 and resnet8x4.
    """

    family = "feature maps"
    default_weight = 0.08
    published: ClassVar = {
        "resnet32x4 resnet8x4": "wkd_f=0.08",
        "wrn_40_2 ShuffleV1": "wkd_f=0.3:ratio=3:grid=4",
    }

    def __init__(
        self,
        setup: Setup,
        *,
        ratio: NonNegative = 4.0,
        grid: Annotated[int, Bound(1)] = 1,
        decay_start: Annotated[int, Bound(0)] = 150,
        decay_end: Annotated[int, Bound(0)] = 240,
    ) -> None:
        super().__init__(setup)
        setup.require_maps()
        student, teacher = setup.student.stages[-1], setup.teacher.stages[-1]
        self.projector = nn.Sequential(hint_convolution(student, teacher), nn.BatchNorm2d(teacher[0]), nn.ReLU())
        if smallest_cell(*teacher[1:], grid) < 2:
            raise ValueError(
                f"each of grid x grid cells must have two pixels or more of the teacher's last map, "
                f"{'x'.join(map(str, teacher))}, got grid {grid}"
            )
        self.ratio, self.grid, self._shapes = ratio, grid, (student, teacher)
        self.decay = CosineDecay(decay_start, decay_end)

    def begin_epoch(self, epoch: int) -> bool:
        """See :meth:`Method.begin_epoch`."""
        return self.decay.begin_epoch(epoch)

    def loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """See :meth:`Method.loss`."""
        mean, deviation = distances(self.projector(student.stages[-1]), teacher.stages[-1], self.grid)
        return self.decay.factor * (self.ratio * mean + deviation)

    def describe(self) -> list[str]:
        """See :meth:`Method.describe`."""
        student, teacher = ("x".join(map(str, shape)) for shape in self._shapes)
        return [f"student's last map {student} with teacher's {teacher} in {self.grid}x{self.grid} cells"]


@in_float32
def distances(student: Tensor, teacher: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return the squared distances of means and of deviations of two maps [N, C, H, W]."""
    ours, theirs = moments(student, grid), moments(teacher, grid)
    mean, deviation = ((s - t).square().sum() / s[..., 0].numel() for s, t in zip(ours, theirs, strict=True))
    return mean, deviation


def moments(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [grid^2, N, C] of each cell; cells are those of adaptive pooling."""
    rows, columns = (bounds(side, grid) for side in maps.shape[2:])
    cells = [maps[:, :, top:bottom, left:right] for (top, bottom), (left, right) in product(rows, columns)]
    variance, mean = zip(*(torch.var_mean(cell, (2, 3)) for cell in cells), strict=True)
    return torch.stack(mean), (torch.stack(variance) + EPS).sqrt()


def bounds(side: int, grid: int) -> list[tuple[int, int]]:
    """Return first and end of each of ``grid`` cells along a side, which may overlap."""
    return [(i * side // grid, -((i + 1) * side // -grid)) for i in range(grid)]


def smallest_cell(height: int, width: int, grid: int) -> int:
    """Return the number of pixels in the smallest cell of a map."""
    sides = (min(end - first for first, end in bounds(side, grid)) for side in (height, width))
    rows, columns = sides
    return rows * columns
