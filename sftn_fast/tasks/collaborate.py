"""Networks that learn together: each from the others' predictions, and none of them trained before.

Deep mutual learning (DML; Zhang et al., CVPR 2018): each network follows each of its peers at temperature 1,
``CE_i + sum_j KL(p_j || p_i)``. A network's loss changes only that network. The authors' code sums over the peers,
others use the mean. All networks see the same augmented images.

Collaborative learning (KDCL; Guo et al., CVPR 2020): all networks follow one target, computed from all their logits,
``0.5 CE_i + 0.5 T^2 KL(target || p_i)``. No code of the authors is known. Weights and temperature follow a
re-implementation that reports CIFAR-100, which uses the mean of the logits. As there, each network gets its own crops
and flips of the images.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.config import CollaborateConfig
from sftn_fast.data import labels_of
from sftn_fast.distillers.network_checks import check_pair
from sftn_fast.models import StagedNet
from sftn_fast.tasks.base import Task


@dataclass(frozen=True)
class _Defaults:
    temperature: float
    weight: float
    ce_weight: float
    own_views: bool


DEFAULTS = {"dml": _Defaults(1.0, 1.0, 1.0, False), "kdcl": _Defaults(4.0, 0.5, 0.5, True)}


class CollaborativeTask(Task):
    """Training of several networks at once: terms ``total``, ``ce`` and ``kl``, summed over the networks.

    Args:
        networks: two or more with the same classes. The last one is ``model``, which is evaluated and exported.
        config: method and weights.

    Attributes:
        views: augmentations of each image in a batch: one for all networks, or one for each.

    Raises:
        ValueError: there are fewer than two networks, they differ in their classes or channels, or share a module.
    """

    def __init__(self, networks: Sequence[StagedNet], config: CollaborateConfig) -> None:
        super().__init__()
        if len(networks) < 2:
            raise ValueError(f"collaboration needs two networks or more, got {len(networks)}")
        for (i, first), (j, second) in itertools.combinations(enumerate(networks, start=1), 2):
            check_pair(f"network {i}", first, f"network {j}", second)
        self.networks = nn.ModuleList(networks)
        self.config = config
        defaults = DEFAULTS[config.method]
        self.temperature, self.weight, self.ce_weight, own_views = (
            getattr(defaults, key) if getattr(config, key) is None else getattr(config, key)
            for key in ("temperature", "weight", "ce_weight", "own_views")
        )
        self.views = len(networks) if own_views else 1

    @property
    def model(self) -> StagedNet:  # type: ignore[override]
        """The last network."""
        return cast(StagedNet, self.networks[-1])

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`; ``images`` are [N, views, C, H, W] if ``views`` is not 1."""
        views = [images] * len(self.networks) if self.views == 1 else images.unbind(1)
        logits = [network(view) for network, view in zip(self.networks, views, strict=True)]
        ce = sum(F.cross_entropy(x.float(), target) for x in logits)
        follow = self._mutual if self.config.method == "dml" else self._ensemble
        kl = follow(logits, target)
        total = self.ce_weight * ce + self.weight * kl
        return {"total": total, "ce": cast(Tensor, ce).detach(), "kl": kl.detach()}

    def _mutual(self, logits: list[Tensor], target: Tensor) -> Tensor:
        """Compare each network with each of its peers, whose predictions carry no gradient."""
        share = 1.0 if self.config.peers == "sum" else 1 / (len(logits) - 1)
        pairs = [(own, peer.detach()) for own in logits for peer in logits if peer is not own]
        return share * cast(Tensor, sum(ops.kd_loss(own, peer, self.temperature) for own, peer in pairs))

    def _ensemble(self, logits: list[Tensor], target: Tensor) -> Tensor:
        """Compare each network with the target computed from the logits of all."""
        with torch.no_grad():
            stacked = torch.stack([x.float() for x in logits])  # [networks, N, C]
            if self.config.ensemble == "minlogit":
                label = stacked.gather(2, labels_of(target).expand(len(logits), -1)[..., None])
                wanted = (stacked - label).amin(0)
            else:
                wanted = stacked.mean(0)
        return cast(Tensor, sum(ops.kd_loss(x.float(), wanted, self.temperature) for x in logits))
