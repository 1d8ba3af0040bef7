"""Training with labels only."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sftn_fast.distillers.network_checks import check_classes
from sftn_fast.models import StagedNet
from sftn_fast.tasks.base import Task


class SupervisedTask(Task):
    """Cross-entropy with the labels: terms ``total`` and ``ce``, which are equal.

    Raises:
        ValueError: the network has one class.
    """

    def __init__(self, model: StagedNet) -> None:
        super().__init__()
        check_classes(model)
        self.model = model

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Return the terms, see :meth:`Task.forward`."""
        total = F.cross_entropy(self.model(images).float(), target)
        return {"total": total, "ce": total.detach()}
