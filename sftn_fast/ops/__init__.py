"""Losses for knowledge distillation, as fused C++/CUDA kernels.

Student first, then teacher. float16, bfloat16, float32 and float64 on CPU and CUDA, arithmetic in float32 (float64 for
float64), losses float32 (float64 for float64). Any strides; inputs are never written to; the same inputs give the same
bits. :mod:`sftn_fast.ops.reference` holds the same functions in plain PyTorch.
"""

from sftn_fast.ops import reference
from sftn_fast.ops._backend import backend, set_backend
from sftn_fast.ops.contrastive import crd_loss
from sftn_fast.ops.logits import kd_ce_loss, kd_loss, sftn_loss
from sftn_fast.ops.memory import CRDMemory
from sftn_fast.ops.terms import KDTerms, SFTNTerms

__all__ = [
    "CRDMemory",
    "KDTerms",
    "SFTNTerms",
    "backend",
    "crd_loss",
    "kd_ce_loss",
    "kd_loss",
    "reference",
    "set_backend",
    "sftn_loss",
]
