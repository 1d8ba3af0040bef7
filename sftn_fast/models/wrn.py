"""Wide residual networks (Zagoruyko & Komodakis, 2016): depth 6n + 4, pre-activation blocks, no dropout.

A stage's output is the sum of its last block, without norm or ReLU, and may be negative. Its pre-activation is this sum
after the norm that follows: the first one of the next stage, or the head's.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn.functional import relu

from sftn_fast.models.layers import init_convolutions
from sftn_fast.models.registry import register
from sftn_fast.models.staged import Features, Head, StagedNet


class WideBlock(nn.Module):
    """x + conv3x3 ReLU BN conv3x3 a with a = ReLU BN x; where the number of channels grows, conv1x1 a + the same."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        same = in_channels == out_channels
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """Return the output [N, C', H', W'] for x [N, C, H, W]; ``normed`` is bn1(x), if computed already."""
        active = relu(self.bn1(x), inplace=True) if normed is None else relu(normed)
        out = self.conv2(relu(self.bn2(self.conv1(active)), inplace=True))
        return out.add_(x if self.shortcut is None else self.shortcut(active))


class WideStage(nn.Sequential):
    """Blocks in sequence; the first one accepts its normed input."""

    __jit_unused_properties__: ClassVar = ["norm"]

    def forward(self, x: Tensor, normed: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return the output [N, C', H', W'] for x [N, C, H, W]; ``normed`` is self.norm(x), if computed already."""
        for position, block in enumerate(self):
            x = block(x, normed if position == 0 else None)
        return x

    @property
    def norm(self) -> nn.BatchNorm2d:
        """First norm of the stage, applied to its input."""
        return cast(WideBlock, self[0]).bn1


class WideHead(Head):
    """Norm and ReLU before pooling and classifier."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__(features, num_classes)
        self.norm = nn.BatchNorm2d(features)

    def forward_unpooled(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """Return the map that is pooled; ``normed`` is ``self.norm(x)``, if computed already."""
        return relu(self.norm(x), inplace=True) if normed is None else relu(normed)


class WideResNet(StagedNet):
    """Stem of one 3x3 convolution and three stages; the second and third halve the size."""

    foreign_names = (
        (r"^conv1\.", "stem."),
        (r"^bn1\.", "head.norm."),
        *((rf"^block{i + 1}\.layer\.", f"stages.{i}.") for i in range(3)),
        (r"\.convShortcut\.", ".shortcut."),
        (r"^fc\.", "head.fc."),
    )
    origins = ("repdistiller", "mdistiller")

    def __init__(self, depth: int, widen: int, *, num_classes: int, in_channels: int) -> None:
        channels, stages = 16, []
        for index, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            blocks = [WideBlock(channels, width, 2 if index > 0 else 1)]
            blocks += [WideBlock(width, width, 1) for _ in range((depth - 4) // 6 - 1)]
            stages.append(WideStage(*blocks))
            channels = width
        super().__init__(
            nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False),
            list(stages),
            WideHead(channels, num_classes),
            num_classes=num_classes,
            in_channels=in_channels,
        )
        init_convolutions(self)
        nn.init.zeros_(cast(Head, self.head).fc.bias)

    def forward_features(self, x: Tensor, *, preact: bool = False) -> Features:
        """See :meth:`StagedNet.forward_features`."""
        if not preact:
            return super().forward_features(x)
        stem = x = self.stem(self.own_images(x))
        outputs, preacts = [], []
        normed = None
        for stage, norm in zip(self.stages, self.preact_norms(), strict=True):
            x = stage(x, normed)
            # Passed on to the next stage, since a norm that runs twice in training would count the batch twice.
            normed = norm(x)
            outputs.append(x)
            preacts.append(normed)
        head = cast(WideHead, self.head)
        unpooled = head.forward_unpooled(x, normed)
        return Features(stem, outputs, preacts, *head.classify(unpooled), unpooled)

    def preact_norms(self) -> list[nn.BatchNorm2d]:
        """Return the norm that follows each stage: the next stage's first one, or the head's."""
        followers = (*list(self.stages)[1:], self.head)
        return [cast("WideStage | WideHead", follower).norm for follower in followers]


for _depth, _widen in ((16, 1), (16, 2), (40, 1), (40, 2)):
    register(f"wrn_{_depth}_{_widen}")(partial(WideResNet, _depth, _widen))
