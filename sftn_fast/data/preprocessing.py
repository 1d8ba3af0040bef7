"""From an image file to the input of a trained network, as in the evaluation of its training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy

from sftn_fast.config import ConfigError
from sftn_fast.data.augment import resize_cut_flip
from sftn_fast.data.crops import center_crop
from sftn_fast.data.decode import decode, pillow, read_square
from sftn_fast.data.grey import to_grey
from sftn_fast.utils.text import printable

LARGEST = 2**15 - 1
"""Largest size of an image in pixels."""
BOUND = 1e6
"""Largest mean and deviation of a channel, and inverse of the least deviation. float32 computes with them."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side of an image with antialiasing, cut out the central square, normalise."""

    resize: int
    """Shorter side after resizing, in pixels."""
    crop: int
    """Side of the square."""
    mean: tuple[float, ...]
    """Of each channel, for pixel values from 0 to 1. One channel means grey images."""
    std: tuple[float, ...]
    white: float | None = None
    """Value of white in images of more than 8 bits, see ``data.white``."""

    def pixels(self, path: str | Path) -> Tensor:
        """Return the square in ``path``: [C, crop, crop] float32 from 0 to 1.

        Raises:
            DecodeError: The file can't be decoded.
        """
        if self.resize == self.crop:
            square = read_square(path, self.crop, self.white)
        else:
            image = from_numpy(np.array(decode(path, self.white))).permute(2, 0, 1)
            wanted = center_crop(image.shape[1], image.shape[2], self.crop)
            top, left, height, width = wanted.box
            square = resize_cut_flip(image[:, top : top + height, left : left + width], wanted, self.crop)
        if len(self.mean) == 1:
            square = to_grey(square)
        return from_numpy(np.ascontiguousarray(square)).float() / 255

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return what the network takes: ``pixels`` [N, C, H, W] from 0 to 1, normalised."""
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: Any, file: str | Path) -> Preprocessing:
        """Return what :meth:`to_json` described.

        Args:
            fields: The JSON value.
            file: Where it is from, for messages.

        Raises:
            ConfigError: ``fields`` is something else.
        """

        def require(usable: bool, key: str, allowed: str) -> None:
            if not usable:
                got = repr(fields.get(key)) if key else repr(fields)
                name = f"preprocessing.{key}" if key else "preprocessing"
                raise ConfigError(f"{printable(file, 300)}: {name} must be {allowed}, got {printable(got)}")

        known = ("resize", "crop", "mean", "std", "white")
        require(isinstance(fields, dict), "", "an object")
        for key in fields.keys() - known:
            require(False, printable(key), f"missing, as this version knows only {', '.join(known)}")
        crop, resize, white = fields.get("crop"), fields.get("resize"), fields.get("white")
        require(type(crop) is int and 1 <= crop <= LARGEST, "crop", f"a whole number from 1 to {LARGEST}")
        sizes = f"a whole number from {crop}, which is crop, to {LARGEST}"
        require(type(resize) is int and crop <= resize <= LARGEST, "resize", sizes)
        mean, std = fields.get("mean"), fields.get("std")
        bounds = f"from {-BOUND:g} to {BOUND:g}"
        require(_are_numbers(mean, -BOUND) and len(mean) in (1, 3), "mean", f"a list of 1 or 3 numbers {bounds}")
        deviations = f"a list of numbers from {1 / BOUND:g} to {BOUND:g}, one for each of mean"
        require(_are_numbers(std, 1 / BOUND) and len(std) == len(mean), "std", deviations)
        require(white is None or _are_numbers([white], 1 / BOUND, 2.0**32), "white", "null or a number greater than 0")
        return cls(resize, crop, tuple(map(float, mean)), tuple(map(float, std)), white)


def require_decoder() -> None:
    """Raise :class:`ConfigError` if no images can be decoded because Pillow is missing."""
    pillow()


def _are_numbers(values: Any, least: float, most: float = BOUND) -> bool:
    """Return whether ``values`` is a list of numbers in these bounds."""
    return isinstance(values, list) and all(type(x) in (float, int) and least <= x <= most for x in values)
