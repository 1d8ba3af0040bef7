"""Networks that learn together: each from the others' predictions, none of them trained before.

Deep mutual learning (Zhang et al., CVPR 2018): each network follows each of its peers, ``CE_i + sum_j KL(p_j || p_i)``,
at temperature 1, and a network's loss moves that network alone. The authors' code sums over the peers; others take the
mean.

Collaborative learning (KDCL; Guo et al., CVPR 2020): all follow one target made of all their logits,
``0.5 CE_i + 0.5 T^2 KL(target || p_i)``. No code of the authors is known; weights and temperature are those of a
re-implementation that reports CIFAR-100, which takes the mean of the logits. As there, each network crops and flips the
images for itself; in mutual learning all see the same.
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
    """Trains several networks at once; terms ``total``, ``ce`` and ``kl``, the parts summed over the networks.

    Args:
        networks: Two or more, of the same classes; the last one is ``model``, which is evaluated and exported.
        config: Method and weights.

    Attributes:
        views: Augmentations of each image that a batch has to hold: one for all networks, or one for each.

    Raises:
        ValueError: There are fewer than two networks, they differ in their classes or channels, or share a module.
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
        """See :meth:`Task.forward`; ``images`` [N, views, C, H, W] where each network has a view of its own."""
        views = [images] * len(self.networks) if self.views == 1 else images.unbind(1)
        logits = [network(view) for network, view in zip(self.networks, views, strict=True)]
        ce = sum(F.cross_entropy(x.float(), target) for x in logits)
        follow = self._mutual if self.config.method == "dml" else self._ensemble
        kl = follow(logits, target)
        total = self.ce_weight * ce + self.weight * kl
        return {"total": total, "ce": cast(Tensor, ce).detach(), "kl": kl.detach()}

    def _mutual(self, logits: list[Tensor], target: Tensor) -> Tensor:
        """Each network after each of its peers, whose predictions are taken as they are."""
        share = 1.0 if self.config.peers == "sum" else 1 / (len(logits) - 1)
        pairs = [(own, peer.detach()) for own in logits for peer in logits if peer is not own]
        return share * cast(Tensor, sum(ops.kd_loss(own, peer, self.temperature) for own, peer in pairs))

    def _ensemble(self, logits: list[Tensor], target: Tensor) -> Tensor:
        """Each network after the target that all make together."""
        with torch.no_grad():
            stacked = torch.stack([x.float() for x in logits])  # [networks, N, C]
            if self.config.ensemble == "minlogit":
                label = stacked.gather(2, target.expand(len(logits), -1)[..., None])
                wanted = (stacked - label).amin(0)
            else:
                wanted = stacked.mean(0)
        return cast(Tensor, sum(ops.kd_loss(x.float(), wanted, self.temperature) for x in logits))
