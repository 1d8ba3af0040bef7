"""torchvision's networks for ImageNet, under torchvision's names.

Layers, initialisation and dropout are torchvision's. This module cuts the networks into stages, and lets the last block
of each stage also return its map before the last ReLU. The networks are made for images of 224 pixels, which the stem
shrinks to 56. ``resnet50`` is torchvision's network for those, ``ResNet50`` is RepDistiller's for images of 32 pixels;
likewise ``resnet18`` and mdistiller's ``ResNet18``. Their weights are not interchangeable.

torchvision is imported when the first of them is built; the names are known without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import relu

from sftn_fast.models.layers import init_convolutions
from sftn_fast.models.registry import register
from sftn_fast.models.shufflenet_v2 import HalfConvolved, half_affines
from sftn_fast.models.staged import PreactModule, Stage, StagedNet
from sftn_fast.models.wrap import WrappedHead, names_in


def torchvision_models() -> ModuleType:
    """Import and return ``torchvision.models``.

    Raises:
        ImportError: It can't be imported; the message says what to install.
    """
    try:
        return import_module("torchvision.models")
    # Not only ImportError: a torchvision that does not match torch raises RuntimeError.
    except Exception as error:
        version = torch.__version__.partition("+")[0]  # without a suffix such as +cu130, which not every index has
        raise ModuleNotFoundError(
            f"the networks {', '.join(CUTS)} are torchvision's, which can't be imported ({error}); install the version "
            f"for this torch: pip install torch=={version} torchvision"
        ) from error


def require_torchvision(name: str) -> None:
    """Check that the network ``name`` of any family can be built, as far as torchvision is concerned.

    Raises:
        ImportError: It is one of torchvision's, which can't be imported; the message says what to install.
    """
    if name in CUTS:
        torchvision_models()


class ResidualEnd(PreactModule):
    """Residual block of torchvision, with its last ReLU applied here."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = _without_last_relu(block)

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output and the sum before the last ReLU."""
        preact = self.block(x)
        return relu(preact), preact

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the last norm of the residual path."""
        return cast(nn.BatchNorm2d, self.block.bn3 if hasattr(self.block, "bn3") else self.block.bn2)


class LinearEnd(PreactModule):
    """Inverted residual block of torchvision's MobileNetV2, which does not end in a ReLU."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward_preact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output twice, since no ReLU follows."""
        out = self.block(x)
        return out, out

    def preact_norm(self) -> nn.BatchNorm2d:
        """Return the norm of the bottleneck."""
        return cast(nn.BatchNorm2d, cast(nn.Sequential, self.block.conv)[-1])


class ShuffleEnd(HalfConvolved):
    """Unit of torchvision's ShuffleNetV2, with its last ReLU applied by the base class."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        *layers, _ = cast(nn.Sequential, unit.branch2)
        self.branch2 = nn.Sequential(*layers)

    def convolve(self, x: Tensor) -> Tensor:
        """See :meth:`HalfConvolved.convolve`."""
        return self.branch2(x)

    def half_norm(self) -> nn.BatchNorm2d:
        """See :meth:`HalfConvolved.half_norm`."""
        return cast(nn.BatchNorm2d, self.branch2[-1])


class TorchvisionHead(WrappedHead):
    """Layers, global average pooling and classifier.

    Args:
        expand: Layers before the pooling, possibly none.
        classifier: Module from the pooled vector to logits.
    """

    def __init__(self, expand: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__(nn.Sequential(*expand, nn.AdaptiveAvgPool2d(1), nn.Flatten()), classifier)

    def forward_unpooled(self, x: Tensor) -> Tensor:
        """Return the map [N, D, H, W] that is pooled."""
        for layer in list(cast(nn.Sequential, self.pool))[:-2]:
            x = layer(x)
        return x

    def classify(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pool a map [N, D, H, W]; return the pooled vector [N, D] and logits [N, num_classes]."""
        pooled = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return pooled, self.classifier(pooled)


class Parts(NamedTuple):
    """Stem, stages and head of a torchvision network, which share its modules."""

    stem: nn.Module
    stages: Sequence[Stage]
    head: nn.Module


class TorchvisionNet(StagedNet):
    """A torchvision network as a staged one. It loads checkpoints with the names of torchvision and of timm.

    Args:
        module: The torchvision network.
        parts: Its stem, stages and head.
        num_classes: Classes.
        in_channels: Channels of the images.
    """

    default_lr = 0.1
    origins = ("torchvision",)

    def __init__(self, module: nn.Module, parts: Parts, *, num_classes: int, in_channels: int) -> None:
        stem, stages, head = parts
        super().__init__(stem, list(stages), head, num_classes=num_classes, in_channels=in_channels)
        self.wrapped_names = names_in(module, self)

    def own_name(self, name: str) -> str:
        """See :meth:`StagedNet.own_name`; timm's names of a MobileNetV2 are translated to torchvision's first."""
        return super().own_name(name if name in self.wrapped_names else timm_to_torchvision(name))

    def preact_affines(self) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`StagedNet.preact_affines`."""
        ends = [cast(Stage, stage)[-1] for stage in self.stages]
        if all(isinstance(end, HalfConvolved) for end in ends):
            return half_affines(cast(list[HalfConvolved], ends))
        return super().preact_affines()


ROWS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks in each row of MobileNetV2's table; timm numbers blocks by row, torchvision through all rows."""
OUTSIDE = {
    "conv_stem": "features.0.0",
    "bn1": "features.0.1",
    "conv_head": "features.18.0",
    "bn2": "features.18.1",
    "classifier": "classifier.1",
}
FIRST_BLOCK = {"conv_dw": "0.0", "bn1": "0.1", "conv_pw": "1", "bn2": "2"}
OTHER_BLOCKS = {"conv_pw": "0.0", "bn1": "0.1", "conv_dw": "1.0", "bn2": "1.1", "conv_pwl": "2", "bn3": "3"}


def timm_to_torchvision(name: str) -> str:
    """Translate the name of a tensor of timm's mobilenetv2_100 to torchvision's MobileNetV2."""
    layer, _, tensor = name.rpartition(".")
    block = re.fullmatch(r"blocks\.([0-6])\.([0-3])\.(\w+)", layer)
    if block is None:
        return f"{OUTSIDE.get(layer, layer)}.{tensor}"
    row, position, part = int(block[1]), int(block[2]), block[3]
    parts = FIRST_BLOCK if row == 0 else OTHER_BLOCKS
    return f"features.{1 + sum(ROWS[:row]) + position}.conv.{parts.get(part, part)}.{tensor}"


def _cut_resnet(net: Any) -> Parts:
    stages = [_stage(layer, ResidualEnd) for layer in (net.layer1, net.layer2, net.layer3, net.layer4)]
    return Parts(nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool), stages, TorchvisionHead([], net.fc))


def _cut_mobilenet(net: Any) -> Parts:
    """Cut after the last block at each size: maps shrunk 4, 8, 16 and 32 times."""
    stem, *_, expand = net.features
    stages = [_stage(net.features[first:last], LinearEnd) for first, last in pairwise((1, 4, 7, 14, 18))]
    return Parts(stem, stages, TorchvisionHead([expand], net.classifier))


def _cut_shufflenet(net: Any) -> Parts:
    stages = [_stage(stage, ShuffleEnd) for stage in (net.stage2, net.stage3, net.stage4)]
    return Parts(nn.Sequential(net.conv1, net.maxpool), stages, TorchvisionHead([net.conv5], net.fc))


CUTS: dict[str, Callable[[Any], Parts]] = {
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "resnet101"), _cut_resnet),
    **dict.fromkeys(("resnext50_32x4d", "wide_resnet50_2"), _cut_resnet),
    "mobilenet_v2": _cut_mobilenet,
    **{f"shufflenet_v2_x{width}": _cut_shufflenet for width in ("0_5", "1_0", "1_5", "2_0")},
}
"""torchvision's name of each network, and the function that cuts it into stages."""


def _build(name: str, *, num_classes: int, in_channels: int) -> TorchvisionNet:
    module = torchvision_models().get_model(name, weights=None, num_classes=num_classes)
    if in_channels != 3:
        _take_channels(module, in_channels)
    return TorchvisionNet(module, CUTS[name](module), num_classes=num_classes, in_channels=in_channels)


for _name in CUTS:
    register(_name)(partial(_build, _name))


def _stage(blocks: nn.Sequential, end: Callable[[nn.Module], PreactModule]) -> Stage:
    *body, last = blocks
    return Stage(*body, end(last))


def _take_channels(module: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one for images of ``in_channels``."""
    name, old = next((name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Conv2d))
    size, stride, padding = (cast(tuple[int, int], pair) for pair in (old.kernel_size, old.stride, old.padding))
    new = nn.Conv2d(in_channels, old.out_channels, size, stride, padding, bias=False)
    init_convolutions(new)
    module.set_submodule(name, new)


def _without_last_relu(block: nn.Module) -> fx.GraphModule:
    """Return a trace of ``block`` without its last ReLU; the module also uses this ReLU in other places."""
    graph = fx.Tracer().trace(block)
    end = graph.output_node()
    (last,) = end.all_input_nodes
    assert isinstance(block.get_submodule(str(last.target)), nn.ReLU)
    end.args = (*last.all_input_nodes,)
    graph.erase_node(last)
    return fx.GraphModule(block, graph, type(block).__name__)
