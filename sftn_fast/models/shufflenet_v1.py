"""ShuffleNet (Zhang et al., 2018) with 3 groups, for small images: a 1x1 stem that does not shrink them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import avg_pool2d, relu

from sftn_fast.models.layers import conv_norm_relu, shuffle_channels
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, Stage, StagedNet

fx.wrap("shuffle_channels")  # one step for torch.fx, since it branches on the memory format

STEM_WIDTH, WIDTHS, DEPTHS, GROUPS = 24, (240, 480, 960), (4, 8, 4), 3


class ShuffleUnit(PreactModule):
    """Grouped 1x1, shuffle, depthwise 3x3, grouped 1x1; added to the input.

    A unit that halves the size is instead concatenated with the average-pooled input, and its convolutions give
    correspondingly fewer channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, halve: bool, in_groups: int = GROUPS) -> None:
        super().__init__()
        self.halve = halve
        self.in_groups = in_groups
        width = out_channels - in_channels if halve else out_channels
        hidden = width // 4
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, groups=in_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, 2 if halve else 1, 1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the sum or concatenation before its ReLU."""
        out = shuffle_channels(relu(self.bn1(self.conv1(x))), self.in_groups)
        out = relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        preact = torch.cat([out, avg_pool2d(x, 3, 2, 1)], 1) if self.halve else out + x
        return relu(preact), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the last norm of the residual path, for units that keep the size, such as the last of a stage."""
        return self.bn3


@register("ShuffleV1")
class ShuffleNetV1(StagedNet):
    """Three stages that halve the size in their first unit."""

    default_lr = 0.01
    foreign_names = (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        *((rf"^layer{i + 1}\.", f"stages.{i}.") for i in range(3)),
        (r"^linear\.", "head.fc."),
    )
    origins = ("repdistiller", "mdistiller")

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        channels, stages = STEM_WIDTH, []
        for index, (width, depth) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            # The stem's 24 channels are too few for groups.
            units = [ShuffleUnit(channels, width, halve=True, in_groups=1 if index == 0 else GROUPS)]
            units += [ShuffleUnit(width, width, halve=False) for _ in range(depth - 1)]
            stages.append(Stage(*units))
            channels = width
        super().__init__(
            conv_norm_relu(in_channels, STEM_WIDTH, 1),
            list(stages),
            Head(channels, num_classes),
            num_classes=num_classes,
            in_channels=in_channels,
        )
