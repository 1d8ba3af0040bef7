"""A network that normalises its own input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.data.preprocessing import Preprocessing


class Deployed(nn.Module):
    """``network`` behind the normalisation of its training.

    Shape:
        Pixels [N, C, H, W] from 0 to 1, to logits [N, num_classes].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of ``pixels``."""
        logits: Tensor = self.network(self.normalize(pixels))
        return logits

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return what the network takes."""
        return (pixels - self.mean) / self.std
