"""ShuffleNet V2 (Ma et al., 2018) at width 1, for small images: a 1x1 stem that does not shrink them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import relu

from sftn_fast.models.layers import conv_norm_relu, shuffle_channels
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, Stage, StagedNet

fx.wrap("shuffle_channels")  # one step for torch.fx, since it branches on the memory format

STEM_WIDTH, WIDTHS, HEAD_WIDTH = 24, (116, 232, 464), 1024
DEPTHS = (3, 7, 3)
"""Units of each stage after the one that halves the size."""


class HalvingUnit(nn.Module):
    """Two convolutional branches of the whole input, each giving half of the output's channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        width = out_channels // 2
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv2 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, width, 3, 2, 1, groups=width, bias=False)
        self.bn4 = nn.BatchNorm2d(width)
        self.conv5 = nn.Conv2d(width, width, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [N, C', H / 2, W / 2] for the input [N, C, H, W]."""
        left = self.bn1(self.conv1(x))
        left = relu(self.bn2(self.conv2(left)))
        right = relu(self.bn3(self.conv3(x)))
        right = self.bn4(self.conv4(right))
        right = relu(self.bn5(self.conv5(right)))
        return shuffle_channels(torch.cat([left, right], 1), 2)


class HalfConvolved(PreactModule):
    """Unit that passes the first half of the channels, convolves the second, and shuffles both together."""

    def convolve(self, x: Tensor) -> Tensor:
        """Run the second half [N, C / 2, H, W] through all its layers but the last ReLU."""
        raise NotImplementedError

    def half_norm(self) -> nn.BatchNorm2d:
        """Return the last layer of :meth:`convolve`."""
        raise NotImplementedError

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output, and both halves before ReLU and shuffle, whose channels are in another order."""
        passed, right = x.chunk(2, 1)
        preact = torch.cat([passed, self.convolve(right)], 1)
        # The half that passes is the output of a ReLU, so a second ReLU does not change it.
        return shuffle_channels(relu(preact), 2), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """Raise ValueError, since half of the pre-activation does not come from a norm."""
        raise ValueError("no BatchNorm writes a whole pre-activation of ShuffleNetV2: half the channels pass it by")


def half_affines(ends: Iterable[HalfConvolved]) -> list[tuple[Tensor, Tensor]]:
    """Return the pre-activations' scales and shifts [C] of stages that end in ``ends``.

    They are those of the last norm for the half that it writes, and zeros for the half that passes, which is the output
    of a ReLU. See :meth:`StagedNet.preact_affines`.
    """
    halves = [(end.half_norm().weight.detach(), end.half_norm().bias.detach()) for end in ends]
    return [
        (torch.cat([torch.zeros_like(scale), scale]), torch.cat([torch.zeros_like(shift), shift]))
        for scale, shift in halves
    ]


class ShuffleUnit(HalfConvolved):
    """Unit with three convolutions on its second half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = channels // 2
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def convolve(self, x: Tensor) -> Tensor:
        """See :meth:`HalfConvolved.convolve`."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.bn3(self.conv3(x))

    def half_norm(self) -> nn.BatchNorm2d:
        """See :meth:`HalfConvolved.half_norm`."""
        return self.bn3


@register("ShuffleV2")
class ShuffleNetV2(StagedNet):
    """Three stages that halve the size in their first unit, and a 1x1 convolution before the pooling."""

    default_lr = 0.01
    foreign_names = (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        *((rf"^layer{i + 1}\.", f"stages.{i}.") for i in range(3)),
        (r"^conv2\.", "head.expand.0."),
        (r"^bn2\.", "head.expand.1."),
        (r"^linear\.", "head.fc."),
    )
    origins = ("repdistiller", "mdistiller")

    def __init__(self, *, num_classes: int, in_channels: int) -> None:
        channels, stages = STEM_WIDTH, []
        for width, depth in zip(WIDTHS, DEPTHS, strict=True):
            stages.append(Stage(HalvingUnit(channels, width), *(ShuffleUnit(width) for _ in range(depth))))
            channels = width
        super().__init__(
            conv_norm_relu(in_channels, STEM_WIDTH, 1),
            list(stages),
            Head(HEAD_WIDTH, num_classes, expand=conv_norm_relu(channels, HEAD_WIDTH, 1)),
            num_classes=num_classes,
            in_channels=in_channels,
        )

    def preact_affines(self) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`StagedNet.preact_affines`."""
        return half_affines(cast(HalfConvolved, cast(Stage, stage)[-1]) for stage in self.stages)
