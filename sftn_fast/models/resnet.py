"""Residual networks for small images (He et al., "Deep Residual Learning", 2016).

The small ones have depth 6n + 2: three stages of n basic blocks. ``x4`` widens the stages four times and the stem
twice, as in RepDistiller. ResNet18 and ResNet50 have the four stages of ImageNet's networks after a 3x3 stem that keeps
the image's size. They differ from torchvision's ``resnet18`` and ``resnet50``; see :mod:`sftn_fast.models.imagenet`.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn.functional import relu

from sftn_fast.models.layers import conv_norm, conv_norm_relu, init_convolutions
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Head, PreactModule, Stage, StagedNet


class ResidualBlock(PreactModule):
    """ReLU of a sum, in place unless the sum is requested too."""

    def sum(self, x: Tensor) -> Tensor:
        """Return the input of the last ReLU: residual path plus shortcut."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """See :meth:`PreactModule.forward`."""
        return relu(self.sum(x), inplace=True)

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the sum before the last ReLU."""
        preact = self.sum(x)
        return relu(preact), preact


class BasicBlock(ResidualBlock):
    """ReLU(BN conv3x3 ReLU BN conv3x3 x + shortcut x)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(in_channels, width, stride)

    def sum(self, x: Tensor) -> Tensor:
        """See :class:`ResidualBlock`."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        return self.bn2(self.conv2(out)).add_(self.shortcut(x))

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the last norm of the residual path."""
        return self.bn2


class Bottleneck(ResidualBlock):
    """ReLU(BN conv1x1 ReLU BN conv3x3 ReLU BN conv1x1 x + shortcut x), four times as wide outside as inside."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut = projection(in_channels, out_channels, stride)

    def sum(self, x: Tensor) -> Tensor:
        """See :class:`ResidualBlock`."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = relu(self.bn2(self.conv2(out)), inplace=True)
        return self.bn3(self.conv3(out)).add_(self.shortcut(x))

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the last norm of the residual path."""
        return self.bn3


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return the identity if the shapes allow it, else a 1x1 convolution with norm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return conv_norm(in_channels, out_channels, 1, stride=stride)


class ResNet(StagedNet):
    """Stem of one 3x3 convolution and stages that halve the size from the second on."""

    foreign_names = (
        (r"^conv1\.", "stem.0."),
        (r"^bn1\.", "stem.1."),
        *((rf"^layer{i + 1}\.", f"stages.{i}.") for i in range(4)),
        (r"\.downsample\.", ".shortcut."),
        (r"^fc\.", "head.fc."),
        (r"^linear\.", "head.fc."),
    )
    origins = ("repdistiller", "mdistiller")

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        stem_width: int,
        widths: tuple[int, ...],
        *,
        num_classes: int,
        in_channels: int,
    ) -> None:
        stages: list[nn.Module] = []
        channels = stem_width
        for index, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for position in range(depth):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = block.expansion * width
            stages.append(Stage(*blocks))
        super().__init__(
            conv_norm_relu(in_channels, stem_width, 3),
            stages,
            Head(channels, num_classes),
            num_classes=num_classes,
            in_channels=in_channels,
        )
        init_convolutions(self)


class FourStageResNet(ResNet):
    """Four stages as for ImageNet after a stem that keeps the image's size; some layers have other foreign names."""

    foreign_names = (
        (r"^linear\.", "head.fc."),
        (r"\.shortcut\.", ".shortcut."),
        *ResNet.foreign_names,
    )


def _basic(depth: int, stem_width: int, widths: tuple[int, int, int]) -> partial[ResNet]:
    return partial(ResNet, BasicBlock, ((depth - 2) // 6,) * 3, stem_width, widths)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    register(f"resnet{_depth}")(_basic(_depth, 16, (16, 32, 64)))
for _depth in (8, 32):
    register(f"resnet{_depth}x4")(_basic(_depth, 32, (64, 128, 256)))
register("ResNet18")(partial(FourStageResNet, BasicBlock, (2, 2, 2, 2), 64, (64, 128, 256, 512)))
register("ResNet50")(partial(FourStageResNet, Bottleneck, (3, 4, 6, 3), 64, (64, 128, 256, 512)))
