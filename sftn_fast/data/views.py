"""Which part of an image a network sees: a random part in training, the centre in evaluation.

The usual ones for ImageNet. A view is worked out from the image's size alone, before anything is decoded, so that
every decoder can be given the same one; what is random is a pure function of a key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sftn_fast.data.keyed import generator

AREA = (0.08, 1.0)  # of the image (Szegedy et al., 2015)
ASPECT = (3 / 4, 4 / 3)  # width over height
ATTEMPTS = 10  # at a part that fits into the image
RESIZED = 256 / 224  # shorter side in evaluation, over the side that is cut out of it
LONGEST = 16  # times the shorter side: what a longer image has beyond is cut off before it is resized


@dataclass(frozen=True)
class View:
    """Cut ``box`` out of an image, resize it to ``resized``, cut the square whose corner is ``corner``, mirror it."""

    box: tuple[int, int, int, int]  # top, left, height, width in the image
    resized: tuple[int, int]  # height, width
    corner: tuple[int, int]  # top, left in the resized box
    flipped: bool


@dataclass(frozen=True)
class Sample:
    """An image file, and what is to be seen of it."""

    path: str
    key: tuple[int | str, ...] | None = None
    """Of the random draws; None for the centre."""
    flip: bool = False
    """Whether every other view is mirrored."""

    def view(self, height: int, width: int, size: int) -> View:
        """The view of ``size`` x ``size`` pixels of this image, which has ``height`` x ``width``."""
        if self.key is None:
            return central_view(height, width, size)
        return random_view(generator(*self.key), height, width, size, flip=self.flip)


def random_view(draws: np.random.Generator, height: int, width: int, size: int, *, flip: bool) -> View:
    """A part of random area, aspect ratio and place, as torchvision's ``RandomResizedCrop``; mirrored every other time.

    Where no part of ``ATTEMPTS`` fits into the image, it is the central one of the nearest ratio that does.
    """
    flipped = bool(draws.integers(2)) and flip
    areas = height * width * draws.uniform(*AREA, size=ATTEMPTS)
    ratios = np.exp(draws.uniform(math.log(ASPECT[0]), math.log(ASPECT[1]), size=ATTEMPTS))
    for area, ratio in zip(areas, ratios, strict=True):
        part_height, part_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < part_height <= height and 0 < part_width <= width:
            top, left = draws.integers((height - part_height + 1, width - part_width + 1)).tolist()
            return View((top, left, part_height, part_width), (size, size), (0, 0), flipped)
    part_height = min(height, round(width / ASPECT[0]))
    part_width = min(width, round(height * ASPECT[1]))
    box = (height - part_height) // 2, (width - part_width) // 2, part_height, part_width
    return View(box, (size, size), (0, 0), flipped)


def central_view(height: int, width: int, size: int) -> View:
    """The central square, once the shorter side is ``size`` * 256 / 224: 256 pixels at the usual 224.

    Rounded as torchvision's ``Resize`` and ``CenterCrop`` do.
    """
    whole, longest = (height, width), LONGEST * min(height, width)
    height, width = min(height, longest), min(width, longest)
    box = (whole[0] - height) // 2, (whole[1] - width) // 2, height, width
    shorter = round(size * RESIZED)
    resized = int(shorter * height / min(height, width)), int(shorter * width / min(height, width))
    corner = round((resized[0] - size) / 2), round((resized[1] - size) / 2)
    return View(box, resized, corner, flipped=False)
