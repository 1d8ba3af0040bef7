"""Networks for tests: as after some training, of zeros where shapes alone matter, and with shared probes."""

from __future__ import annotations

from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

from sftn_fast import models
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.imagenet import CUTS


def blank(name: str, **options: int) -> StagedNet:
    """Build the network ``name`` with weights of zero, for tests of shapes.

    A pass over small images costs a fifth of one on the meta device, and no time goes into random numbers.
    """
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("normal_", "uniform_"):
            patch.setattr(Tensor, draw, lambda tensor, *_, **__: tensor.zero_())
        return models.build(name, **options)


def probed_once(net: StagedNet) -> StagedNet:
    """Give ``net`` the probe of the first network of its name and size: a probe takes longer than most tests."""
    net.probe = partial(_probe, net.name, net.num_classes, net.in_channels)  # type: ignore[method-assign]
    return net


@cache
def _probe(name: str, num_classes: int, in_channels: int, image_size: int) -> Features:
    return blank(name, num_classes=num_classes, in_channels=in_channels).probe(image_size)


def build(name: str, *, num_classes: int = 7, in_channels: int = 3) -> models.StagedNet:
    """The network ``name``, whose BatchNorms are no identities."""
    if name in CUTS:
        pytest.importorskip("torchvision")
    torch.manual_seed(0)
    net = models.build(name, num_classes=num_classes, in_channels=in_channels)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net
