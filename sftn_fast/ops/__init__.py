"""Losses for knowledge distillation, as fused C++/CUDA kernels.

Student first, then teacher. float16, bfloat16, float32 and float64 on CPU and CUDA, arithmetic in float32 (float64 for
float64), losses float32 (float64 for float64). Any strides; inputs are never written to; the same inputs give the same
bits. :mod:`sftn_fast.ops.reference` holds the same functions in plain PyTorch.
"""

from sftn_fast.ops import reference
from sftn_fast.ops._backend import backend, set_backend
from sftn_fast.ops.logits import kd_ce_loss, kd_loss, sftn_loss
from sftn_fast.ops.relational_rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from sftn_fast.ops.terms import KDTerms, RKDTerms, SFTNTerms

__all__ = [
    "KDTerms",
    "RKDTerms",
    "SFTNTerms",
    "backend",
    "kd_ce_loss",
    "kd_loss",
    "reference",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "set_backend",
    "sftn_loss",
]
