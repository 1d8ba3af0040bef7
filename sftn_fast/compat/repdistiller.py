"""RepDistiller's criteria on the fused losses, with its class names and call signatures.

In a script of HobbitLong/RepDistiller, change

    from distiller_zoo import DistillKL, HintLoss, Attention, ...
    from crd.criterion import CRDLoss

to

    from sftn_fast.compat.repdistiller import DistillKL, HintLoss, Attention, ..., CRDLoss

Values equal RepDistiller's up to rounding. The differences are:

* All losses are 0-dim; two of the originals return shape ``[1]``.
* Losses are float32 at least, also under autocast.
* No class needs a GPU to be built; RepDistiller's ``CRDLoss`` does. Without ``contrast_idx``, negatives are drawn from
  all samples, as there, but by PyTorch's own generator.
* Exact duplicates in a batch give finite gradients in ``RKDLoss``, and a zero embedding gives no NaN in ``CRDLoss``.

Lists of maps are paired in order. As in RepDistiller, the extra maps of one network are ignored, here with one warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast import nn as losses
from sftn_fast import ops
from sftn_fast.nn.loss import mean
from sftn_fast.nn.nst import same_size
from sftn_fast.nn.precision import in_float32
from sftn_fast.ops import validation as check
from sftn_fast.ops.features_attention import check_power
from sftn_fast.ops.features_pointwise import check_margin

__all__ = [
    "FSP",
    "KDSVD",
    "PKT",
    "ABLoss",
    "Attention",
    "CRDLoss",
    "Correlation",
    "DistillKL",
    "FactorTransfer",
    "HintLoss",
    "NSTLoss",
    "RKDLoss",
    "Similarity",
    "VIDLoss",
]

Maps = Sequence[Tensor]


class DistillKL(nn.Module):
    """Distillation of logits at temperature ``T``."""

    def __init__(self, T: float) -> None:
        super().__init__()
        check.check_temperature(T, "T")
        self.T = T

    def forward(self, y_s: Tensor, y_t: Tensor) -> Tensor:
        """Compute the loss of logits ``[N, C]``, 0-dim."""
        return ops.kd_loss(y_s, y_t, self.T)


class HintLoss(nn.Module):
    """FitNets: mean squared error of two maps."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Compute the loss of two maps of one shape, 0-dim."""
        return ops.hint_loss(f_s, f_t)


class Attention(nn.Module):
    """Attention transfer, with a loss for each pair of maps."""

    def __init__(self, p: float = 2) -> None:
        super().__init__()
        check_power("p", p)
        self.p = p

    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses from lists of maps ``[N, C, H, W]``."""
        return [ops.at_loss(s, t, p=self.p) for s, t in _pairs(g_s, g_t)]


class Similarity(nn.Module):
    """Similarity preservation, with a loss for each pair of maps."""

    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses from lists of features ``[N, ...]``."""
        return [ops.sp_loss(s, t) for s, t in _pairs(g_s, g_t)]


class VIDLoss(losses.VIDLoss):
    """Variational information distillation of one pair of maps. Parameters have the original's names."""

    def __init__(
        self,
        num_input_channels: int,
        num_mid_channel: int,
        num_target_channels: int,
        init_pred_var: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        check.check_size("num_input_channels", num_input_channels)
        check.check_size("num_mid_channel", num_mid_channel)
        check.check_size("num_target_channels", num_target_channels)
        super().__init__(
            num_input_channels,
            num_target_channels,
            mid_channels=num_mid_channel,
            init_variance=init_pred_var,
            eps=eps,
        )


class RKDLoss(nn.Module):
    """Relational distillation, ``w_d`` * distances + ``w_a`` * angles. The teacher gets no gradient."""

    def __init__(self, w_d: float = 25, w_a: float = 50) -> None:
        super().__init__()
        check.check_finite("w_d", w_d)
        check.check_finite("w_a", w_a)
        self.w_d, self.w_a = w_d, w_a

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Compute the loss of features ``[N, ...]``, 0-dim."""
        student, teacher = f_s.flatten(1), f_t.detach().flatten(1)
        return ops.rkd_loss(student, teacher, distance_weight=self.w_d, angle_weight=self.w_a).total


class PKT(nn.Module):
    """Probabilistic knowledge transfer."""

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Compute the loss of embeddings ``[N, D]``, 0-dim."""
        return ops.pkt_loss(f_s, f_t)


class ABLoss(nn.Module):
    """Activation boundaries. The loss of map i of ``feat_num`` has the weight ``2^(i - feat_num + 1) * 3/1000``."""

    def __init__(self, feat_num: int, margin: float = 1.0) -> None:
        super().__init__()
        check.check_size("feat_num", feat_num)
        check_margin("margin", margin)
        self.w = [2.0 ** (i - feat_num + 1) for i in range(feat_num)]
        self.margin = margin

    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses from lists of maps before their ReLU."""
        pairs = zip(self.w, _pairs(g_s, g_t), strict=False)
        return [weight * 3e-3 * ops.ab_loss(s, t.detach(), margin=self.margin) for weight, (s, t) in pairs]


class FactorTransfer(nn.Module):
    """Factor transfer. The kernel computes the usual ``p1=2, p2=1``; other powers run as plain PyTorch."""

    def __init__(self, p1: float = 2, p2: float = 1) -> None:
        super().__init__()
        check.check_finite("p1", p1)
        check.check_finite("p2", p2)
        self.p1, self.p2 = p1, p2

    def forward(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        """Compute the loss of factors ``[N, C, H, W]``, 0-dim."""
        if (self.p1, self.p2) == (2, 1):
            return ops.ft_loss(f_s, f_t)
        return self._with_powers(f_s, f_t)

    @in_float32
    def _with_powers(self, f_s: Tensor, f_t: Tensor) -> Tensor:
        check.check_feature_map("f_s", f_s)
        check.check_feature_map("f_t", f_t)
        check.check_same_batch("f_t", f_t, "f_s", f_s)
        f_s, f_t = same_size(f_s, f_t)
        difference = self.factor(f_s) - self.factor(f_t)
        return mean(difference.abs() if self.p2 == 1 else difference.pow(self.p2))

    @in_float32
    def factor(self, f: Tensor) -> Tensor:
        """Return the unit vector ``[N, H * W]`` of a factor's mean power over channels."""
        return F.normalize(f.pow(self.p1).mean(1).flatten(1))


class CRDLoss(nn.Module):
    """Contrastive representation distillation with its embeddings and memory.

    ``opt`` needs the attributes ``s_dim``, ``t_dim``, ``feat_dim``, ``n_data``, ``nce_k``, ``nce_t`` and ``nce_m``.
    """

    def __init__(self, opt: Any) -> None:
        super().__init__()
        for name in ("s_dim", "t_dim", "feat_dim", "n_data", "nce_k"):
            check.check_size(f"opt.{name}", getattr(opt, name))
        self.embed_s = losses.Embed(opt.s_dim, opt.feat_dim)
        self.embed_t = losses.Embed(opt.t_dim, opt.feat_dim)
        self.contrast = ops.CRDMemory(opt.n_data, opt.feat_dim, temperature=opt.nce_t, momentum=opt.nce_m)
        self.n_data, self.nce_k = opt.n_data, opt.nce_k

    def forward(self, f_s: Tensor, f_t: Tensor, idx: Tensor, contrast_idx: Tensor | None = None) -> Tensor:
        """Compute the loss of a batch and update the memory's rows ``idx``, in train and eval mode as in the original.

        Args:
            f_s: ``[B, s_dim]``.
            f_t: ``[B, t_dim]``.
            idx: ``[B]``, positions of the images in the training set.
            contrast_idx: ``[B, 1 + nce_k]``, the position of the positive, then those of the negatives. By default
                the negatives are drawn from all samples.
        """
        student, teacher = self.embed_s(f_s), self.embed_t(f_t)
        if contrast_idx is None:
            positive, negatives = idx, torch.randint(self.n_data, (len(idx), self.nce_k), device=idx.device)
        else:
            positive, negatives = contrast_idx[:, 0], contrast_idx[:, 1:]
        # In the mode "relax" the positive is another image of the class, while the row of idx is updated.
        loss = ops.crd_loss(student, teacher, positive.contiguous(), negatives, self.contrast, update=False)
        self.contrast.update(student.detach(), teacher.detach(), idx)
        return loss


class NSTLoss(nn.Module):
    """Neuron selectivity transfer, with a loss for each pair of maps. Plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.nst_loss = losses.NSTLoss()

    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses from lists of maps ``[N, C, H, W]``."""
        return [self.nst_loss(s, t) for s, t in _pairs(g_s, g_t)]


class Correlation(losses.CorrelationLoss):
    """Correlation congruence of embeddings. Plain PyTorch."""


class FSP(nn.Module):
    """Flow of the solution procedure, with a loss for each pair of neighbouring maps. Plain PyTorch."""

    def __init__(self, s_shapes: Sequence[Sequence[int]], t_shapes: Sequence[Sequence[int]]) -> None:
        super().__init__()
        channels = [[shape[1] for shape in shapes] for shapes in (s_shapes, t_shapes)]
        if channels[0] != channels[1]:
            raise ValueError(f"FSP needs the same channels, got {channels[0]} and {channels[1]}")
        self.loss = losses.FSPLoss()

    @in_float32  # convert here, so that the gradient of a map used by two losses is rounded once
    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses, one fewer than maps, from lists of maps ``[N, C, H, W]``."""
        neighbours = zip(g_s[:-1], g_s[1:], g_t[:-1], g_t[1:], strict=True)
        return [self.loss((s1, s2), (t1, t2)) for s1, s2, t1, t2 in neighbours]


class KDSVD(nn.Module):
    """Distillation of the ``k`` leading singular vectors of each map (Lee et al., ECCV 2018). Plain PyTorch."""

    def __init__(self, k: int = 1) -> None:
        super().__init__()
        self.loss = losses.KDSVDLoss(k)

    def forward(self, g_s: Maps, g_t: Maps) -> list[Tensor]:
        """Compute a list of 0-dim losses, one fewer than maps, from lists of maps ``[N, C, H, W]``."""
        student, teacher = zip(*_pairs(g_s, g_t), strict=True)
        return self.loss(student, teacher)


def _pairs(g_s: Maps, g_t: Maps) -> Iterator[tuple[Tensor, Tensor]]:
    if len(g_s) != len(g_t):
        warnings.warn(
            f"student has {len(g_s)} maps, teacher {len(g_t)}: the first {min(len(g_s), len(g_t))} are paired, as in "
            "RepDistiller; the others are ignored",
            stacklevel=3,
        )
    return zip(g_s, g_t, strict=False)
