"""The part of an image that a network sees: a random crop in training, the centre in evaluation.

These are the usual crops for ImageNet. A crop is computed from the image's size alone, before anything is decoded, so
that every decoder gets the same one. Random crops are a pure function of a key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sftn_fast.data.auto_augment import Policy
from sftn_fast.data.seeding import generator

AREA = (0.08, 1.0)  # range of a crop's area, as a fraction of the image's (Szegedy et al., 2015)
ASPECT = (3 / 4, 4 / 3)  # range of width over height
ATTEMPTS = 10  # to draw a crop that fits into the image
RESIZED = 256 / 224  # in evaluation: shorter side after resizing, over the side of the central square
LONGEST = 16  # in evaluation: images longer than so many times their shorter side are cut before resizing


@dataclass(frozen=True)
class Crop:
    """Cut ``box`` out of an image, resize it to ``resized``, cut a square at ``corner`` out of that, mirror it."""

    box: tuple[int, int, int, int]  # top, left, height, width in the image
    resized: tuple[int, int]  # height, width
    corner: tuple[int, int]  # top, left in the resized box
    flipped: bool


@dataclass(frozen=True)
class Sample:
    """An image file, and how to crop it."""

    path: str
    key: tuple[int | str, ...] | None = None
    """Key of the random numbers; None for the central crop."""
    flip: bool = False
    """Mirror random crops with probability 1/2."""
    policy: Policy | None = None
    """Operations on the crop, with a key."""

    def crop(self, height: int, width: int, size: int) -> Crop:
        """Return the crop of ``size`` x ``size`` pixels of this image, which has ``height`` x ``width``."""
        if self.key is None:
            return center_crop(height, width, size)
        return random_crop(generator(*self.key), height, width, size, flip=self.flip)

    def change(self, pixels: Tensor) -> Tensor:
        """Return the crop [C, size, size] uint8 after the operations of the policy; for a sample that has one."""
        assert self.policy is not None and self.key is not None
        codes = self.policy.draw(generator(*self.key, "policy"), count=1)
        return self.policy.apply(pixels[None], codes)[0]


def random_crop(draws: np.random.Generator, height: int, width: int, size: int, *, flip: bool) -> Crop:
    """Return a crop of random area, aspect ratio and position, as torchvision's ``RandomResizedCrop`` does.

    If none of ``ATTEMPTS`` draws fits into the image, the crop is central, with the nearest aspect ratio that fits.

    Args:
        draws: Random generator.
        height, width: Size of the image.
        size: Side of the result in pixels.
        flip: Mirror with probability 1/2.
    """
    flipped = bool(draws.integers(2)) and flip
    areas = height * width * draws.uniform(*AREA, size=ATTEMPTS)
    ratios = np.exp(draws.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), size=ATTEMPTS))
    for area, ratio in zip(areas, ratios, strict=True):
        part_height, part_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < part_height <= height and 0 < part_width <= width:
            top, left = draws.integers((height - part_height + 1, width - part_width + 1)).tolist()
            return Crop((top, left, part_height, part_width), (size, size), (0, 0), flipped)
    part_height = min(height, round(width / ASPECT[0]))
    part_width = min(width, round(height * ASPECT[1]))
    box = (height - part_height) // 2, (width - part_width) // 2, part_height, part_width
    return Crop(box, (size, size), (0, 0), flipped)


def center_crop(height: int, width: int, size: int) -> Crop:
    """Return the central square after resizing the shorter side to ``size`` * 256 / 224: 256 pixels for the usual 224.

    Rounds as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    whole, longest = (height, width), LONGEST * min(height, width)
    height, width = min(height, longest), min(width, longest)
    box = (whole[0] - height) // 2, (whole[1] - width) // 2, height, width
    shorter = round(size * RESIZED)
    resized = int(shorter * height / min(height, width)), int(shorter * width / min(height, width))
    corner = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return Crop(box, resized, corner, flipped=False)
