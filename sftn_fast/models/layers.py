"""Layers and initialisations shared by several families of networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv_norm(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution without bias, padded to keep the size at stride 1, and a BatchNorm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return :func:`conv_norm` and a ReLU, in place to save one map in memory."""
    return conv_norm(in_channels, out_channels, kernel, stride=stride, groups=groups).append(nn.ReLU(inplace=True))


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of the groups of a map [N, C, H, W], as ``torch.channel_shuffle`` does.

    It uses only operations that every exporter supports, and keeps the channels-last memory format.
    """
    n, c, h, w = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        x = x.permute(0, 2, 3, 1).view(n, h, w, groups, c // groups).transpose(3, 4).reshape(n, h, w, c)
        return x.permute(0, 3, 1, 2)
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def init_convolutions(net: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / (k k C_out)) and set their biases to zero.

    C_out counts all groups together, also for depthwise convolutions. Source: He et al., "Delving Deep into
    Rectifiers", 2015, fan-out mode.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(classifier: nn.Linear) -> None:
    """Draw the classifier's weight from N(0, 0.01^2) and set its bias to zero."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
