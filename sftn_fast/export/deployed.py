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

    def network_normalization(self) -> tuple[list[float], list[float]]:
        """Return the mean and deviation of each channel by which the network was made to see pixels, its own change in.

        A network that changes the data's images first, see :mod:`sftn_fast.models.own_input`, has others than the data.
        """
        mean, std = self.mean.flatten().double(), self.std.flatten().double()
        change = getattr(self.network, "own_input", None)
        if change is not None:
            scale, shift = (torch.tensor(numbers, dtype=torch.float64) for numbers in change.numbers())
            mean, std = mean - shift * std / scale, std / scale
        return mean.tolist(), std.tolist()

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return what the network takes."""
        return (pixels - self.mean) / self.std
