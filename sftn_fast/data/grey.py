"""Grey images: one channel instead of three."""

from __future__ import annotations

import numpy as np

WEIGHTS = (19595, 38470, 7471)
"""Of red, green and blue in the brightness, in 65536ths: those of ITU-R BT.601, as Pillow rounds them."""
MEAN, STD = (0.449,), (0.226,)
"""The means of ImageNet's mean and standard deviation over its channels."""


def to_grey(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness [1, H, W] of colours [3, H, W] uint8, as Pillow computes it; grey stays what it is."""
    weighted = sum(weight * channel.astype(np.uint32) for weight, channel in zip(WEIGHTS, pixels, strict=True))
    return ((weighted + 2**15) >> 16).astype(np.uint8)[None]
