"""MobileNetV2 (Sandler et al., 2018) at half width, with the strides that RepDistiller uses for small images."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from sftn_fast.models.layers import conv_norm, conv_norm_relu, init_classifier, init_convolutions
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, Stage, StagedNet

# (expansion, output channels, blocks, stride of the first), grouped by stage. Channels are half of the paper's.
STAGES = (
    ((1, 8, 1, 1), (6, 12, 2, 1)),
    ((6, 16, 3, 2),),
    ((6, 32, 4, 2), (6, 48, 3, 1)),
    ((6, 80, 3, 2), (6, 160, 1, 1)),
)
STEM_WIDTH, HEAD_WIDTH = 16, 1280


class InvertedResidual(PreactModule):
    """Wide depthwise convolution between two 1x1 convolutions; the last has no ReLU (a linear bottleneck)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *conv_norm_relu(in_channels, hidden, 1),
            *conv_norm_relu(hidden, hidden, 3, stride=stride, groups=hidden),
            *conv_norm(hidden, out_channels, 1),
        )

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output twice, since no ReLU follows."""
        out = self.conv(x)
        if self.residual:
            out = out + x
        return out, out

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the norm of the bottleneck."""
        return cast(nn.BatchNorm2d, self.conv[-1])


def _foreign_names() -> tuple[tuple[str, str], ...]:
    """Return RepDistiller's names, which count rows of the paper's table and blocks in each; stages count blocks."""
    pairs = [(r"^conv1\.", "stem."), (r"^conv2\.", "head.expand."), (r"^classifier\.0\.", "head.fc.")]
    row = 0
    for stage, rows in enumerate(STAGES):
        position = 0
        for _, _, depth, _ in rows:
            for block in range(depth):
                pairs.append((rf"^blocks\.{row}\.{block}\.", f"stages.{stage}.{position}."))
                position += 1
            row += 1
    return tuple(pairs)


@register("MobileNetV2")
class MobileNetV2(StagedNet):
    """Stem of stride 2 and four stages; the last three halve the size."""

    default_lr = 0.01

    foreign_names = _foreign_names()
    origins = ("repdistiller", "mdistiller")

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        channels, stages = STEM_WIDTH, []
        for rows in STAGES:
            blocks = []
            for expansion, width, depth, first_stride in rows:
                for position in range(depth):
                    stride = first_stride if position == 0 else 1
                    blocks.append(InvertedResidual(channels, width, stride, expansion))
                    channels = width
            stages.append(Stage(*blocks))
        super().__init__(
            conv_norm_relu(in_channels, STEM_WIDTH, 3, stride=2),
            list(stages),
            Head(HEAD_WIDTH, num_classes, expand=conv_norm_relu(channels, HEAD_WIDTH, 1)),
            num_classes=num_classes,
            in_channels=in_channels,
        )
        init_convolutions(self)
        init_classifier(cast(Head, self.head).fc)
