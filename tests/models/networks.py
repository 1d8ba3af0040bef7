"""Small networks as they are after some training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sftn_fast import models
from sftn_fast.models.imagenet import CUTS


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
