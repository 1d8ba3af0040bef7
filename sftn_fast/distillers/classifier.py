"""The linear classifier of a network, and the map whose mean over the image it classifies."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sftn_fast.distillers.method import NetInfo
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.copying import copy_network
from sftn_fast.models.staged import Shape


class Classifier:
    """Linear classifier of a network that averages a map [D, H, W] over the image.

    Not a module, so that a method that holds one registers none of the network.

    Args:
        role: ``student`` or ``teacher``, for messages.
        about: The network.

    Attributes:
        shape: Shape of the map, (D, H, W).

    Raises:
        ValueError: The network classifies otherwise, or its maps are not [N, C, H, W].
    """

    def __init__(self, role: str, about: NetInfo) -> None:
        self._net, self._at = about.net, "unpooled"
        if about.unpooled is not None:
            self.shape = about.unpooled
        elif _averages(about):
            self.shape, self._at = about.stages[-1], "last stage"
        else:
            raise ValueError(
                f"the {role} {about.net.name or 'network'} must classify the mean of its last map: give its head the "
                "methods forward_unpooled and classify, as sftn_fast.models.staged.Head has them"
            )
        linear_layer(role, about.net)

    @property
    def layer(self) -> nn.Linear:
        """The linear layer, with the network's current weights."""
        return cast(nn.Linear, _linear(self._net))

    def map(self, features: Features) -> Tensor:
        """Return the map [N, D, H, W] of a pass through the network."""
        return cast(Tensor, features.unpooled) if self._at == "unpooled" else features.stages[-1]


def linear_layer(role: str, net: StagedNet) -> nn.Linear:
    """Return the linear layer between the pooled vector and the logits of ``net``, the ``role`` in messages.

    Raises:
        ValueError: The network ends otherwise.
    """
    layer = _linear(net)
    if layer is None:
        raise ValueError(f"the {role} {net.name or 'network'} must end with one linear layer")
    return layer


def _linear(net: StagedNet) -> nn.Linear | None:
    """Return the linear layer between pooled vector and logits, unless there are more layers with weights."""
    end = getattr(net.head, "fc", getattr(net.head, "classifier", nn.Identity()))
    layers = [layer for layer in end.modules() if isinstance(layer, nn.Linear)]
    if len(layers) != 1 or set(end.parameters()) != set(layers[0].parameters()):
        return None
    return layers[0]


def _averages(about: NetInfo) -> bool:
    """Return whether the head averages the last stage's map, and does nothing else before its classifier."""
    shape: Shape = about.stages[-1]
    weights = next(about.net.parameters())
    if len(shape) != 3 or shape[0] != about.pooled or weights.is_meta or not about.net.runs_from_stages:
        return False
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(weights)
    head = copy_network(about.net.head).eval()
    with torch.no_grad():
        pooled, _ = head.forward_pooled(noise)  # type: ignore[operator]
    return torch.allclose(pooled, noise.mean((2, 3)), rtol=1e-3, atol=1e-4)
