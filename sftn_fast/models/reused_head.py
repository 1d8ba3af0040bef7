"""A head with another network's classifier: a connector maps a network's last map to the one that it classifies.

SimKD trains such a student. The head is a part of the network, so it is evaluated, exported and loaded with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast.models.copying import copy_network
from sftn_fast.models.layers import conv_norm_relu
from sftn_fast.models.staged import Head, Shape, StagedNet
from sftn_fast.models.weight_files import WeightsError

KEY = "reused_head"
"""Key of ``config.json`` that describes such a head; other networks don't have it."""
LARGEST = 512
"""Largest side of a map that a description may ask for."""


class ReusedHead(Head):
    """Layers of the network's own head, connector, global average pooling, and a frozen classifier.

    The connector is 1x1, 3x3 and 1x1 convolution, each with BatchNorm and ReLU.

    Args:
        own: Head that it replaces; its classifier is removed, its layers before the pooling stay.
        channels: Channels of the map that ``own`` pools.
        middle: Channels within the connector.
        features: Length of the vectors that the classifier takes, D.
        num_classes: Classes.
        size: Height and width to which the map is average-pooled before the connector; None to keep its size.
    """

    def __init__(
        self,
        own: nn.Module,
        *,
        channels: int,
        middle: int,
        features: int,
        num_classes: int,
        size: tuple[int, int] | None,
    ) -> None:
        super().__init__(features, num_classes)
        self.fc.requires_grad_(False)
        for name in ("fc", "classifier"):
            if hasattr(own, name):
                setattr(own, name, nn.Identity())
        self.own, self.size = own, size
        layers = (conv_norm_relu(channels, middle, 1), conv_norm_relu(middle, middle, 3))
        self.connector = nn.Sequential(*(x for part in layers for x in part), *conv_norm_relu(middle, features, 1))

    def forward_unpooled(self, x: Tensor, normed: Tensor | None = None) -> Tensor:
        """Return the map [N, D, H, W] that is pooled; ``normed`` is for a head that takes it."""
        unpooled: Callable[..., Tensor] | None = getattr(self.own, "forward_unpooled", None)
        if unpooled is not None:
            x = unpooled(x) if normed is None else unpooled(x, normed)
        if self.size is not None:
            x = nn.functional.adaptive_avg_pool2d(x, self.size)
        return self.connector(x)

    @property
    def norm(self) -> nn.Module:
        """The norm of the head that it replaced, which describes the last stage's pre-activation."""
        return self.own.norm  # type: ignore[return-value]

    @torch.no_grad()
    def copy_classifier(self, classifier: nn.Linear) -> None:
        """Take weight and bias of ``classifier``, unless they are the present ones rounded, as under autocast."""
        bias = torch.zeros_like(self.fc.bias) if classifier.bias is None else classifier.bias
        for own, other in ((self.fc.weight, classifier.weight), (self.fc.bias, bias)):
            theirs = other.to(own.device)
            if not torch.equal(own.to(theirs.dtype), theirs):
                own.copy_(theirs)


def describe_head(net: StagedNet) -> dict[str, Any]:
    """Return what ``config.json`` tells of the head of ``net``; empty for a head that its name determines."""
    head = net.head
    if not isinstance(head, ReusedHead):
        return {}
    return {KEY: {"size": None if head.size is None else list(head.size)}}


def check_description(description: Mapping[str, Any], place: str) -> None:
    """Raise :class:`WeightsError` unless ``description``, read from ``place``, is one of :func:`describe_head`."""
    size = description.get("size", 0)
    pair = isinstance(size, list) and len(size) == 2 and all(type(each) is int and 0 < each <= LARGEST for each in size)
    if not (size is None or pair) or description.keys() != {"size"}:
        raise WeightsError(f"{place} is damaged: {KEY!r} must have a size, null or two whole numbers up to {LARGEST}")


def give_head(net: StagedNet, description: Mapping[str, Any], weights: Mapping[Any, Any], place: str) -> None:
    """Give ``net`` the head that ``description`` and the shapes of ``weights`` tell of, with new weights.

    Raises:
        WeightsError: The weights have no such head. ``net`` is unchanged then.
    """
    first, second, last = (_shape(weights, f"head.connector.{number}.weight") for number in (0, 3, 6))
    middle, channels = (*first, 0, 0)[:2]
    features = (*last, 0)[0]
    fits = first == (middle, channels, 1, 1) and second == (middle, middle, 3, 3) and last == (features, middle, 1, 1)
    if not fits or _shape(weights, "head.fc.weight") != (net.num_classes, features):
        raise WeightsError(f"{place} is damaged: its weights are not those of a {KEY.replace('_', ' ')}")
    size = description["size"]
    head = ReusedHead(
        copy_network(net.head),  # the head that ``net`` has stays whole
        channels=channels,
        middle=middle,
        features=features,
        num_classes=net.num_classes,
        size=None if size is None else (size[0], size[1]),
    )
    net.head = head.to(next(net.parameters()).device).train(net.training)


def _shape(weights: Mapping[Any, Any], name: str) -> Shape | tuple[int, ...]:
    return tuple(getattr(weights.get(name), "shape", ()))
