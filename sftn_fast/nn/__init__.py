"""The losses of :mod:`sftn_fast.ops` as modules, and losses that need layers of their own."""

from sftn_fast.nn.adapted_hint import AdaptedHint, hint_convolution
from sftn_fast.nn.contrastive import CRDLoss, Embed
from sftn_fast.nn.correlation import CorrelationLoss
from sftn_fast.nn.features import ABLoss, ATLoss, FTLoss, HintLoss, OHLoss, VIDLoss
from sftn_fast.nn.fsp import FSPLoss
from sftn_fast.nn.kdsvd import KDSVDLoss
from sftn_fast.nn.logits import KDCELoss, KDLoss, SFTNLoss
from sftn_fast.nn.logits_batch import DISTLoss, WKDLoss
from sftn_fast.nn.logits_divergence import DivergenceLoss, DKDLoss, NKDLoss, RLDLoss, TTMLoss
from sftn_fast.nn.nst import NSTLoss
from sftn_fast.nn.relational import PKTLoss, RKDAngleLoss, RKDDistanceLoss, RKDLoss, SPLoss

__all__ = [
    "ABLoss",
    "ATLoss",
    "AdaptedHint",
    "CRDLoss",
    "CorrelationLoss",
    "DISTLoss",
    "DKDLoss",
    "DivergenceLoss",
    "Embed",
    "FSPLoss",
    "FTLoss",
    "HintLoss",
    "KDCELoss",
    "KDLoss",
    "KDSVDLoss",
    "NKDLoss",
    "NSTLoss",
    "OHLoss",
    "PKTLoss",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "RKDLoss",
    "RLDLoss",
    "SFTNLoss",
    "SPLoss",
    "TTMLoss",
    "VIDLoss",
    "WKDLoss",
    "hint_convolution",
]
