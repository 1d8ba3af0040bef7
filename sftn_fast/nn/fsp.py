"""Flow of the solution procedure: correlations between the maps of two stages. Plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.nn.nst import same_size
from sftn_fast.nn.precision import in_float32


class FSPLoss(nn.Module):
    """Mean squared difference of the two networks' FSP matrices (Yim et al., CVPR 2017).

    An FSP matrix ``[N, C2, C1]`` holds the products of the channels of two maps of one network, averaged over pixels.
    The larger map is average-pooled to the smaller one's size. Both networks must have the same channels.
    """

    @in_float32
    def forward(self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
        """Compute the loss of two maps of each network, 0-dim float32, or float64 for float64 maps.

        The maps are ``[N, C1, H, W]`` and ``[N, C2, H, W]``, the earlier one first.
        """
        return (fsp_matrix(*student) - fsp_matrix(*teacher)).square().mean()


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return the FSP matrix ``[N, C2, C1]`` of maps ``[N, C1, H, W]`` and ``[N, C2, H, W]``."""
    first, second = (x.flatten(2) for x in same_size(first, second))
    return torch.bmm(second, first.transpose(1, 2)) / first.shape[2]
