"""Rectangles that hide a part of an image: random erasing and cutout.

Boxes are drawn on the host from a key, and filled on the device. A box is top, left, height and width in pixels; one of
no height hides nothing.

Zhong et al., "Random Erasing Data Augmentation", AAAI 2020; DeVries & Taylor, "Improved Regularization of Convolutional
Neural Networks with Cutout", 2017.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

AREA = (0.02, 0.33)  # range of an erased area, as a fraction of the image's
ASPECT = (0.3, 3.3)  # range of height over width
ATTEMPTS = 10  # to draw a box that fits into the image
CUTOUT = 0.5  # largest side of a cutout, as a fraction of the image's


def erasing_boxes(draws: np.random.Generator, count: int, size: int, probability: float) -> np.ndarray:
    """Draw boxes as torchvision's ``RandomErasing`` does: [4, count] int64.

    Args:
        draws: Random generator.
        count: Number of images.
        size: Side of the images in pixels.
        probability: Share of the images to hide a part of.
    """
    hidden = draws.random(count) < probability
    areas = size * size * draws.uniform(*AREA, size=(ATTEMPTS, count))
    ratios = np.exp(draws.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), size=(ATTEMPTS, count)))
    place = draws.random((2, count))
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights < size) & (widths < size)
    first = fits.argmax(0)[None]
    sides = np.concatenate([np.take_along_axis(each, first, 0) for each in (heights, widths)])
    sides *= hidden & fits.any(0)
    return np.concatenate([np.floor(place * (size + 1 - sides)), sides]).astype(np.int64)


def cutout_boxes(draws: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Draw squares of up to half of the image's side, cut off at its edges, as in FixMatch's code: [4, count] int64."""
    side = draws.random(count) * CUTOUT * size
    corner = np.floor(np.maximum(draws.random((2, count)) * size - side / 2, 0))
    return np.concatenate([corner, np.minimum(size - corner, np.floor(side) + 1)]).astype(np.int64)


def fill_boxes(images: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """Fill a box in each image.

    Args:
        images: [B, C, H, W].
        boxes: [4, B] int64.
        value: [C, 1, 1].

    Returns:
        New images [B, C, H, W].
    """
    top, left, height, width = boxes
    hidden = inside((top, top + height, left, left + width), *images.shape[2:])
    return torch.where(hidden[:, None], value, images)


def inside(limits: Iterable[Tensor], height: int, width: int) -> Tensor:
    """Return which pixels of images are in a box.

    Args:
        limits: Top, bottom, left and right of each box [...]; the lower ones belong to it.
        height, width: Size of the images in pixels.

    Returns:
        [..., height, width] bool.
    """
    top, bottom, left, right = (limit[..., None] for limit in limits)
    rows, columns = (torch.arange(length, device=top.device) for length in (height, width))
    return ((rows >= top) & (rows < bottom))[..., None] & ((columns >= left) & (columns < right))[..., None, :]
