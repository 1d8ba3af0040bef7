"""VGG (Simonyan & Zisserman, 2015) with BatchNorm, for small images: global average pooling and one linear layer."""

from __future__ import annotations

from functools import partial
from typing import cast

from torch import Tensor, fx, nn
from torch.nn.functional import max_pool2d, relu

from sftn_fast.models.layers import init_classifier, init_convolutions
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, StagedNet

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
"""Convolutions in the stem and the four stages."""


@fx.wrap
def pool_from(x: Tensor, width: int) -> Tensor:
    """Halve height and width of a map [N, C, H, W] that is at least ``width`` pixels wide, else return it.

    The function is one step for torch.fx, which can't trace the condition.
    """
    return max_pool2d(x, 2) if x.shape[-1] >= width else x


class PoolFrom(nn.Module):
    """:func:`pool_from` as a module."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """See :func:`pool_from`."""
        return pool_from(x, self.width)


class VGGBlock(PreactModule):
    """3x3 convolutions with BatchNorm and ReLU; maps ``pooled_from`` pixels wide or more are pooled first."""

    def __init__(self, in_channels: int, width: int, depth: int, *, pooled_from: int | None) -> None:
        super().__init__()
        self.pool = nn.Identity() if pooled_from is None else PoolFrom(pooled_from)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_channels = width
        # forward_preact applies the last ReLU, and returns the map before it.
        self.layers = nn.Sequential(*layers[:-1])

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the map before its ReLU."""
        preact = self.layers(self.pool(x))
        return relu(preact), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the norm of the last convolution."""
        return cast(nn.BatchNorm2d, self.layers[-1])


class VGG(StagedNet):
    """Stem at full size, stages 1 to 3 that halve it, and stage 4 that halves it only from 8 pixels on.

    RepDistiller applies the fourth pooling to images of 64 pixels only; these have 8 pixels before it.
    """

    cpu_channels_last = False

    foreign_names = (
        (r"^block0\.", "stem.layers."),
        *((rf"^block{i + 1}\.", f"stages.{i}.layers.") for i in range(4)),
        (r"^classifier\.", "head.fc."),
    )
    origins = ("repdistiller", "mdistiller")

    def __init__(self, depths: tuple[int, ...], *, num_classes: int, in_channels: int) -> None:
        channels, blocks = in_channels, []
        for width, depth, pooled_from in zip(WIDTHS, depths, (None, 2, 2, 2, 8), strict=True):
            blocks.append(VGGBlock(channels, width, depth, pooled_from=pooled_from))
            channels = width
        stem, *stages = blocks
        super().__init__(
            stem, list(stages), Head(channels, num_classes), num_classes=num_classes, in_channels=in_channels
        )
        init_convolutions(self)
        init_classifier(cast(Head, self.head).fc)


for _name, _depths in CONVOLUTIONS.items():
    register(_name)(partial(VGG, _depths))
