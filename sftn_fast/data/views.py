"""What happens to one view of an image beside crop and flip: a policy of operations, and a hidden part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sftn_fast.config import DataConfig
from sftn_fast.data.auto_augment import Policy, policy_of
from sftn_fast.data.boxes import cutout_boxes, erasing_boxes
from sftn_fast.data.grey import to_grey

CUTOUT_COLOUR = (125, 123, 114)
"""Of a cutout in FixMatch's code, which MLLD's took over; grey images get its brightness."""


@dataclass(frozen=True)
class View:
    """Augmentation of one view of each image."""

    policy: Policy | None = None
    """Operations on the pixels, after crop and flip."""
    erasing: float = 0.0
    """Probability to hide a part of the image behind the mean colour of the data set."""
    cutout: bool = False
    """Hide a square in each image instead, behind a grey of its own."""

    @property
    def hides(self) -> bool:
        """Whether a part of some images is hidden."""
        return self.cutout or self.erasing > 0

    @property
    def augments(self) -> bool:
        """Whether the pixels of an image differ between epochs."""
        return self.policy is not None or self.hides

    def boxes(self, draws: np.random.Generator, count: int, size: int) -> np.ndarray:
        """Draw the parts to hide of ``count`` images of ``size`` x ``size`` pixels: [4, count] int64."""
        return cutout_boxes(draws, count, size) if self.cutout else erasing_boxes(draws, count, size, self.erasing)

    def hidden_value(self, mean: Tensor, std: Tensor) -> Tensor:
        """Return what hidden parts look like in normalised images [C, 1, 1], given ``mean`` and ``std`` [C, 1, 1]."""
        if not self.cutout:
            return torch.zeros_like(mean)
        grey = int(to_grey(np.array(CUTOUT_COLOUR, np.uint8).reshape(3, 1, 1)).item())
        colour = CUTOUT_COLOUR if len(mean) == len(CUTOUT_COLOUR) else (grey,) * len(mean)
        return (torch.tensor(colour, dtype=mean.dtype).view(-1, 1, 1).to(mean.device) / 255 - mean) / std

    def settings(self) -> dict[str, str]:
        """Return what is set, for the run's fingerprint; that of an earlier version has none of it."""
        return ({"auto_augment": str(self.policy)} if self.policy else {}) | (
            {"random_erasing": str(self.erasing)} if self.erasing else {}
        )


PLAIN = View()
"""Crop and flip alone."""
STRONG = View(Policy("strong", 2), cutout=True)
"""The strong view of MLLD's code: two operations of any magnitude, then a cutout."""


def view_of(config: DataConfig, channels: int) -> View:
    """Return the view that ``config`` describes, of images of ``channels``.

    Raises:
        ConfigError: See :func:`~sftn_fast.data.auto_augment.policy_of`.
    """
    return View(policy_of(config, channels), config.random_erasing)


def several_views(first: View, count: int, *, strong: bool) -> tuple[View, ...]:
    """Return ``count`` views that are all like ``first``; with ``strong`` the last one is a strong view."""
    return (*[first] * (count - 1), STRONG if strong else first)
