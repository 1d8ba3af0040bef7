"""MobileNet (Howard et al., 2017) at full width, for images of 224 pixels, cut where mdistiller compares features."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.functional import relu

from sftn_fast.models.layers import conv_norm, conv_norm_relu
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, Stage, StagedNet

STEM_WIDTH = 32
# (output channels, stride) of each block, by stage. A stage ends with the last block at its size; the first block keeps
# the stem's size.
STAGES = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), *((512, 1),) * 5),
    ((1024, 2), (1024, 1)),
)


class SeparableBlock(PreactModule):
    """Depthwise 3x3 convolution, then a 1x1 one, each with BatchNorm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        # forward_preact applies the last ReLU, and returns the map before it.
        self.layers = nn.Sequential(
            *conv_norm_relu(in_channels, in_channels, 3, stride=stride, groups=in_channels),
            *conv_norm(in_channels, out_channels, 1),
        )

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the map before its ReLU."""
        preact = self.layers(x)
        return relu(preact), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the norm of the 1x1 convolution."""
        return cast(nn.BatchNorm2d, self.layers[-1])


def _foreign_names() -> tuple[tuple[str, str], ...]:
    """Return mdistiller's names, which number the stem and all blocks; each stage here numbers its own blocks."""
    pairs, number = [(r"^model\.0\.", "stem."), (r"^fc\.", "head.fc.")], 1
    for stage, blocks in enumerate(STAGES):
        for position in range(len(blocks)):
            pairs.append((rf"^model\.{number}\.", f"stages.{stage}.{position}.layers."))
            number += 1
    return tuple(pairs)


@register("MobileNetV1")
class MobileNetV1(StagedNet):
    """Stem of stride 2 and four stages that halve the size; PyTorch's default initialisation."""

    default_lr = 0.1
    foreign_names = _foreign_names()
    origins = ("mdistiller",)

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        channels, stages = STEM_WIDTH, []
        for widths in STAGES:
            blocks = []
            for width, stride in widths:
                blocks.append(SeparableBlock(channels, width, stride))
                channels = width
            stages.append(Stage(*blocks))
        super().__init__(
            conv_norm_relu(in_channels, STEM_WIDTH, 3, stride=2),
            list(stages),
            Head(channels, num_classes),
            num_classes=num_classes,
            in_channels=in_channels,
        )
