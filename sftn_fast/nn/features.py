"""Modules of the losses on feature maps ``[N, C, H, W]``."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import ops
from sftn_fast.nn.loss import OpLoss
from sftn_fast.ops import validation as check
from sftn_fast.ops.features_attention import VARIANTS, check_power
from sftn_fast.ops.features_pointwise import check_margin


class HintLoss(OpLoss):
    """Mean squared error; see :func:`sftn_fast.ops.hint_loss`. :class:`AdaptedHint` is for maps of different shapes."""

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss of two maps of one shape, 0-dim."""
        return ops.hint_loss(student_features, teacher_features)


class ATLoss(OpLoss):
    """Attention transfer; see :func:`sftn_fast.ops.at_loss`."""

    def __init__(self, *, p: float = 2) -> None:
        check_power("p", p)
        super().__init__(p=p)

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss of two maps, 0-dim. Channels and sizes may differ."""
        return ops.at_loss(student_features, teacher_features, **self.options)


class FTLoss(OpLoss):
    """Factor transfer; see :func:`sftn_fast.ops.ft_loss`."""

    def __init__(self, *, variant: str = "repdistiller") -> None:
        check.check_choice("variant", variant, VARIANTS)
        super().__init__(variant=variant)

    def forward(self, student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
        """Compute the loss of the translator's and the paraphraser's factor, 0-dim."""
        return ops.ft_loss(student_factor, teacher_factor, **self.options)


class ABLoss(OpLoss):
    """Activation boundaries of one layer; see :func:`sftn_fast.ops.ab_loss`."""

    def __init__(self, *, margin: float = 1.0) -> None:
        check_margin("margin", margin)
        super().__init__(margin=margin)

    def forward(self, student_preact: Tensor, teacher_preact: Tensor) -> Tensor:
        """Compute the loss of two maps of one shape, before their ReLU, 0-dim."""
        return ops.ab_loss(student_preact, teacher_preact, **self.options)


class OHLoss(nn.Module):
    """Overhaul distillation of one layer, with the teacher's margins; see :func:`sftn_fast.ops.oh_loss`.

    Args:
        margin: ``[C]``, the lower bound applied to the teacher's features.
    """

    margin: Tensor

    def __init__(self, margin: Tensor) -> None:
        super().__init__()
        check.check_vector("margin", margin)
        check.check_constant("margin", margin)
        self.register_buffer("margin", margin)

    @classmethod
    def from_norm(cls, norm: nn.BatchNorm2d) -> OHLoss:
        """Build the loss with the margins of the BatchNorm before the teacher's ReLU."""
        return cls(ops.oh_margin(norm.weight, norm.bias))

    def forward(self, student_preact: Tensor, teacher_preact: Tensor) -> Tensor:
        """Compute the loss of two maps of one shape, before their ReLU, 0-dim."""
        return ops.oh_loss(student_preact, teacher_preact, self.margin)


class VIDLoss(nn.Module):
    """Variational information distillation of one layer (Ahn et al., CVPR 2019), with regressor and variances.

    Three 1x1 convolutions predict the teacher's map from the student's. Each channel learns its variance. The larger
    map is average-pooled to the smaller one's size. See :func:`sftn_fast.ops.vid_loss`.

    Args:
        student_channels: Channels of the student's map.
        teacher_channels: Channels of the teacher's map.
        mid_channels: Channels between the convolutions; the teacher's channels by default.
        init_variance: Variance of every channel at the start, above ``eps``.
        eps: Least variance.
    """

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        *,
        mid_channels: int | None = None,
        init_variance: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check.check_size("student_channels", student_channels)
        check.check_size("teacher_channels", teacher_channels)
        if mid_channels is not None:
            check.check_size("mid_channels", mid_channels)
        check.check_positive("eps", eps)
        check.check_positive("init_variance", init_variance, most=700.0)
        if init_variance <= eps:
            raise ValueError(f"init_variance must be above eps, {eps}, got {init_variance}")
        middle = teacher_channels if mid_channels is None else mid_channels
        self.regressor = nn.Sequential(
            nn.Conv2d(student_channels, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, teacher_channels, 1, bias=False),
        )
        # softplus(log_scale) + eps is the variance
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), math.log(math.expm1(init_variance - eps))))
        self.eps = eps

    def forward(self, student_features: Tensor, teacher_features: Tensor) -> Tensor:
        """Compute the loss of maps ``[N, Cs, Hs, Ws]`` and ``[N, Ct, Ht, Wt]``, 0-dim."""
        check.check_feature_map("student_features", student_features)
        check.check_feature_map("teacher_features", teacher_features)
        height, width = teacher_features.shape[2:]
        if student_features.shape[2] > height:  # pool before the regressor, which then has less work
            student_features = F.adaptive_avg_pool2d(student_features, (height, width))
        mean = self.regressor(student_features)
        return ops.vid_loss(mean, self.log_scale, teacher_features, eps=self.eps)
