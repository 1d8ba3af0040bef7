"""The losses in plain PyTorch, with the names and signatures of :mod:`sftn_fast.ops`.

They are the oracle of the tests, a baseline of the benchmarks and the fallback where there is no kernel. Arithmetic is
float32 for half-precision inputs, as in the kernels. They do not check arguments; :mod:`sftn_fast.ops` does.
"""

from sftn_fast.ops.reference.contrastive import crd_loss
from sftn_fast.ops.reference.contrastive_negatives import sample_negatives
from sftn_fast.ops.reference.features_adaptation import adapted_hint_loss
from sftn_fast.ops.reference.features_attention import at_loss, ft_loss
from sftn_fast.ops.reference.features_pointwise import ab_loss, hint_loss, oh_loss, oh_margin, vid_loss
from sftn_fast.ops.reference.logits import kd_ce_loss, kd_loss, sftn_loss
from sftn_fast.ops.reference.logits_correlation import dist_loss
from sftn_fast.ops.reference.logits_divergence import divergence_loss, dkd_loss, nkd_loss, rld_loss, ttm_loss
from sftn_fast.ops.reference.logits_transport import wkd_loss
from sftn_fast.ops.reference.relational_rkd import rkd_angle_loss, rkd_distance_loss, rkd_loss
from sftn_fast.ops.reference.relational_similarity import pkt_loss, sp_loss

__all__ = [
    "ab_loss",
    "adapted_hint_loss",
    "at_loss",
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
    "rkd_angle_loss",
    "rkd_distance_loss",
    "rkd_loss",
    "rld_loss",
    "sample_negatives",
    "sftn_loss",
    "sp_loss",
    "ttm_loss",
    "vid_loss",
    "wkd_loss",
]
