"""Losses that learn parameters of their own, as modules around :mod:`sftn_fast.ops`."""

from sftn_fast.nn.adapted_hint import AdaptedHint

__all__ = ["AdaptedHint"]
