"""Networks that are unusual for distillation, registered on import."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast import models
from sftn_fast.models import StagedNet
from sftn_fast.models.staged import Head


def block(inputs: int, outputs: int, stride: int = 2) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def staged(name: str, stages: list[nn.Module], head: nn.Module, classes: int, channels: int) -> StagedNet:
    return StagedNet(block(channels, 8, 1), stages, head, num_classes=classes, in_channels=channels, name=name)


class Tokens(nn.Module):
    """Turns a map [N, C, H, W] into tokens [N, H * W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention between tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        alike = torch.softmax(x @ x.transpose(1, 2), -1)
        return self.norm(x + self.mix(alike @ x))


class TokenHead(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_pooled(x)[1]

    def forward_pooled(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled = x.mean(1)
        return pooled, self.fc(pooled)


class WithUnused(StagedNet):
    """A network with a layer that no pass calls."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        self.unused = nn.Linear(3, 3)


@models.register("odd_tokens")
def odd_tokens(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    stages = [nn.Sequential(block(8, 8), Tokens(), Layer(8)), Layer(8), Layer(8)]
    return staged("odd_tokens", stages, TokenHead(8, num_classes), num_classes, in_channels)


@models.register("odd_one_stage")
def odd_one_stage(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    return staged("odd_one_stage", [block(8, 8)], Head(8, num_classes), num_classes, in_channels)


@models.register("odd_unused")
def odd_unused(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    stages: list[nn.Module] = [block(8, 8), block(8, 16), block(16, 16)]
    options = {"num_classes": num_classes, "in_channels": in_channels, "name": "odd_unused"}
    return WithUnused(block(in_channels, 8, 1), stages, Head(16, num_classes), **options)


@models.register("odd_weight_norm")
def odd_weight_norm(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    stages: list[nn.Module] = [block(8, 8), block(8, 16), block(16, 16)]
    for stage in stages:
        torch.nn.utils.parametrizations.weight_norm(stage[0])
    return staged("odd_weight_norm", stages, Head(16, num_classes), num_classes, in_channels)


@models.register("odd_qat")
def odd_qat(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    """Build a network for quantisation-aware training."""
    from torch.ao import quantization

    stages: list[nn.Module] = [block(8, 8), block(8, 16), block(16, 16)]
    net = staged("odd_qat", stages, Head(16, num_classes), num_classes, in_channels)
    net.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(net.train())


@models.register("odd_deep")
def odd_deep(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    """Build a network for images of 40 pixels or more."""
    stages: list[nn.Module] = [nn.Conv2d(8, 8, 20), nn.Conv2d(8, 8, 20)]
    return staged("odd_deep", stages, Head(8, num_classes), num_classes, in_channels)


@models.register("odd_classes")
def odd_classes(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    """Build a network with two classes more than requested."""
    stages: list[nn.Module] = [block(8, 8), block(8, 16), block(16, 16)]
    return staged("odd_classes", stages, Head(16, num_classes + 2), num_classes + 2, in_channels)


@models.register("odd_frozen")
def odd_frozen(*, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    stages: list[nn.Module] = [block(8, 8), block(8, 16), block(16, 16)]
    return staged("odd_frozen", stages, Head(16, num_classes), num_classes, in_channels).requires_grad_(False)
