"""From an image file to the input of a trained network, as in the evaluation of its training."""

from __future__ import annotations

from collections.abc import Sequence
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
            square = np.array(pillow()[0].fromarray(square.transpose(1, 2, 0).copy()).convert("L"))[None]
        return from_numpy(np.ascontiguousarray(square)).float() / 255

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return what the network takes: ``pixels`` [N, C, H, W] from 0 to 1, normalised."""
        mean, std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, fields: Any) -> Preprocessing:
        """Return what :meth:`to_json` described.

        Raises:
            ConfigError: ``fields`` is something else.
        """
        try:
            mean, std = (_numbers(fields[key]) for key in ("mean", "std"))
            resize, crop, white = fields["resize"], fields["crop"], fields.get("white")
            usable = all(type(size) is int and 0 < size < 2**15 for size in (resize, crop)) and resize >= crop
            if not usable or len(mean) != len(std) or 0 in std or not isinstance(white, float | int | None):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"preprocessing must have resize, crop, mean and std, got {fields!r}") from error
        return cls(resize, crop, mean, std, white)


def require_decoder() -> None:
    """Raise :class:`ConfigError` if no images can be decoded because Pillow is missing."""
    pillow()


def _numbers(values: Sequence[Any]) -> tuple[float, ...]:
    if not values or not all(isinstance(value, float | int) and np.isfinite(value) for value in values):
        raise ValueError
    return tuple(float(value) for value in values)
