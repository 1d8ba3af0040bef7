"""Losses for knowledge distillation, as fused C++/CUDA kernels.

The student's argument comes first, then the teacher's. Inputs are float16, bfloat16, float32 or float64, on CPU or
CUDA, with any strides. Arithmetic and losses are float32, or float64 for float64 inputs. Inputs are never written to.
The same inputs give the same bits. :mod:`sftn_fast.ops.reference` holds the same functions in plain PyTorch.
"""

from sftn_fast.ops import _capability, reference
from sftn_fast.ops._backend import backend, find_kernels, set_backend
from sftn_fast.ops._checking import set_unchecked, unchecked
from sftn_fast.ops.contrastive import crd_loss
from sftn_fast.ops.contrastive_negatives import sample_negatives
from sftn_fast.ops.features_adaptation import adapted_hint_loss
from sftn_fast.ops.features_attention import at_loss, ft_loss
from sftn_fast.ops.features_pointwise import ab_loss, hint_loss, oh_loss, oh_margin, vid_loss
from sftn_fast.ops.logits import kd_ce_loss, kd_loss, sftn_loss
from sftn_fast.ops.logits_correlation import dist_loss
from sftn_fast.ops.logits_divergence import divergence_loss, dkd_loss, nkd_loss, rld_loss, ttm_loss
from sftn_fast.ops.logits_transport import wkd_loss
from sftn_fast.ops.memory import CRDMemory
from sftn_fast.ops.relational_rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from sftn_fast.ops.relational_similarity import pkt_loss, sp_loss
from sftn_fast.ops.terms import DISTTerms, DKDTerms, KDTerms, RKDTerms, SFTNTerms

_capability.choose()
find_kernels()

__all__ = [
    "CRDMemory",
    "DISTTerms",
    "DKDTerms",
    "KDTerms",
    "RKDTerms",
    "SFTNTerms",
    "ab_loss",
    "adapted_hint_loss",
    "at_loss",
    "backend",
    "crd_loss",
    "dist_loss",
    "divergence_loss",
    "dkd_loss",
    "ft_loss",
    "hint_loss",
    "kd_ce_loss",
    "kd_loss",
    "nkd_loss",
    "oh_loss",
    "oh_margin",
    "pkt_loss",
    "reference",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "rld_loss",
    "sample_negatives",
    "set_backend",
    "set_unchecked",
    "sftn_loss",
    "sp_loss",
    "ttm_loss",
    "unchecked",
    "vid_loss",
    "wkd_loss",
]
