"""Return types of the losses with several terms. Only ``total`` has a gradient; the rest is detached, for logging."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DISTTerms(NamedTuple):
    """``total = inter_weight * inter + intra_weight * intra``, each 0-dim."""

    total: Tensor
    inter: Tensor
    intra: Tensor


class DKDTerms(NamedTuple):
    """``total = target_weight * target + nontarget_weight * nontarget``, each 0-dim."""

    total: Tensor
    target: Tensor
    nontarget: Tensor


class KDTerms(NamedTuple):
    """``total = kd_weight * kd + ce_weight * ce``, each 0-dim."""

    total: Tensor
    kd: Tensor
    ce: Tensor


class RKDTerms(NamedTuple):
    """``total = distance_weight * distance + angle_weight * angle``, each 0-dim."""

    total: Tensor
    distance: Tensor
    angle: Tensor


class SFTNTerms(NamedTuple):
    """``total = teacher_weight * teacher_ce + ce_weight * branch_ce + kl_weight * branch_kl``, each 0-dim."""

    total: Tensor
    teacher_ce: Tensor
    branch_ce: Tensor
    branch_kl: Tensor
