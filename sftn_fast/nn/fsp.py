"""Flow of the solution procedure: correlations between the maps of two stages. Plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sftn_fast.nn.loss import mean
from sftn_fast.nn.nst import same_size
from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check


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
        for name, maps in (("student", student), ("teacher", teacher)):
            for i, features in enumerate(maps):
                check.check_feature_map(f"{name}[{i}]", features)
            check.check_same_batch(f"{name}[1]", maps[1], f"{name}[0]", maps[0])
        ours, theirs = fsp_matrix(*student), fsp_matrix(*teacher)
        check.check_like("the teacher's FSP matrix", theirs, "the student's", ours)
        return mean((ours - theirs).square())


def fsp_matrix(first: Tensor, second: Tensor) -> Tensor:
    """Return the FSP matrix ``[N, C2, C1]`` of maps ``[N, C1, H, W]`` and ``[N, C2, H, W]``."""
    first, second = (x.flatten(2) for x in same_size(first, second))
    return torch.bmm(second, first.transpose(1, 2)) / first.shape[2]
