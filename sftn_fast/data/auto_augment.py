"""Policies of random operations on uint8 images: RandAugment, TrivialAugment, and the strong view of MLLD.

Operations are torchvision's, imported where they are used. Operation, level and sign are drawn here, as one code for
each image, so that they depend on a key alone. Images with the same code are changed together.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2019; Müller & Hutter,
"TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import numpy as np
from torch import Tensor, from_numpy

from sftn_fast.config import MAX_LEVEL, ConfigError, DataConfig
from sftn_fast.data.source import require

CHANNELS = (1, 3)
"""Numbers of channels that torchvision's operations on colours take."""
OPS, LEVEL = 2, 9
"""Of RandAugment, if the configuration names none: torchvision's defaults."""

Function = Callable[[Any, Tensor, float], Tensor]
"""A change of images [B, C, H, W] uint8 by torchvision's functional module, which comes first, and a magnitude."""


def _move(functional: Any, images: Tensor, *, translate: tuple[int, int] = (0, 0), shear: Any = (0.0, 0.0)) -> Tensor:
    """Move or shear ``images``; the origin is their corner, pixels are not interpolated, and the rest is black."""
    center = [0.0, 0.0] if any(shear) else None
    return cast(Tensor, functional.affine(images, 0.0, list(translate), 1.0, list(shear), center=center))


def _angle(slope: float) -> float:
    return math.degrees(math.atan(slope))


FUNCTIONS: dict[str, Function] = {
    "identity": lambda _, x, v: x,
    "shear_x": lambda f, x, v: _move(f, x, shear=(_angle(v), 0.0)),
    "shear_y": lambda f, x, v: _move(f, x, shear=(0.0, _angle(v))),
    "translate_x": lambda f, x, v: _move(f, x, translate=(int(v * x.shape[-1]), 0)),  # by a share of the width
    "translate_y": lambda f, x, v: _move(f, x, translate=(0, int(v * x.shape[-2]))),
    "shift_x": lambda f, x, v: _move(f, x, translate=(int(v), 0)),  # by pixels
    "shift_y": lambda f, x, v: _move(f, x, translate=(0, int(v))),
    "rotate": lambda f, x, v: f.rotate(x, v),
    "brightness": lambda f, x, v: f.adjust_brightness(x, 1 + v),
    "color": lambda f, x, v: f.adjust_saturation(x, 1 + v),
    "contrast": lambda f, x, v: f.adjust_contrast(x, 1 + v),
    "sharpness": lambda f, x, v: f.adjust_sharpness(x, 1 + v),
    "posterize": lambda f, x, v: f.posterize(x, round(v)),
    "solarize": lambda f, x, v: f.solarize(x, 255 * v),
    "autocontrast": lambda f, x, v: f.autocontrast(x),
    "equalize": lambda f, x, v: f.equalize(x),
}


@dataclass(frozen=True)
class Operation:
    """A function, and the magnitudes from its least level to its highest."""

    name: str
    low: float = 0.0
    high: float = 0.0
    signed: bool = False
    """Negate the magnitude with probability 1/2."""

    def magnitude(self, level: int) -> float:
        """Return the magnitude of ``level``, of 0 .. MAX_LEVEL."""
        return self.low + (self.high - self.low) * level / MAX_LEVEL


def _space(slope: float, move: tuple[str, float], angle: float, factor: float, bits: int) -> tuple[Operation, ...]:
    """Return the operations that RandAugment and TrivialAugment share, with the largest magnitudes of each."""
    by, distance = move
    return (
        Operation("identity"),
        *(Operation(f"shear_{axis}", 0, slope, signed=True) for axis in "xy"),
        *(Operation(f"{by}_{axis}", 0, distance, signed=True) for axis in "xy"),
        Operation("rotate", 0, angle, signed=True),
        *(Operation(name, 0, factor, signed=True) for name in ("brightness", "color", "contrast", "sharpness")),
        Operation("posterize", 8, bits),
        Operation("solarize", 1, 0),
        Operation("autocontrast"),
        Operation("equalize"),
    )


SPACES = {
    "randaugment": _space(0.3, ("translate", 150 / 331), 30.0, 0.9, bits=4),
    "trivialaugment": _space(0.99, ("shift", 32.0), 135.0, 0.99, bits=2),
    "strong": (
        Operation("identity"),
        *(Operation(f"{by}_{axis}", -0.3, 0.3) for by in ("shear", "translate") for axis in "xy"),
        Operation("rotate", -30.0, 30.0),
        *(Operation(name, -0.95, -0.05) for name in ("brightness", "color", "contrast", "sharpness")),
        Operation("posterize", 3.5, 7.5),  # rounded, where the code cuts off 4 to 8
        Operation("solarize", 1, 0),
        Operation("autocontrast"),
        Operation("equalize"),
    ),
}
"""Operations of each policy. The first two are torchvision's, the last is that of MLLD's code, from FixMatch."""


@dataclass(frozen=True)
class Policy:
    """Random operations, one after the other, on each image."""

    space: str
    """Key of :data:`SPACES`."""
    ops: int
    """Number of operations."""
    level: int | None = None
    """Level of all magnitudes, 0 .. MAX_LEVEL; None to draw one for each operation."""

    def __str__(self) -> str:
        level = "any" if self.level is None else self.level
        return f"{self.space} ops={self.ops} level={level}"

    def draw(self, draws: np.random.Generator, count: int) -> np.ndarray:
        """Draw the codes of ``count`` images: [ops, count] int64."""
        space, shape = SPACES[self.space], (self.ops, count)
        chosen = draws.integers(len(space), size=shape)
        levels = draws.integers(MAX_LEVEL + 1, size=shape)
        negative = draws.integers(2, size=shape)
        if self.level is not None:
            levels[:] = self.level
        # Levels and signs without effect are dropped: images then have equal codes more often.
        levels *= np.array([operation.low != operation.high for operation in space])[chosen]
        negative *= np.array([operation.signed for operation in space])[chosen]
        return (chosen * (MAX_LEVEL + 1) + levels) * 2 + negative

    def apply(self, images: Tensor, codes: np.ndarray) -> Tensor:
        """Return ``images`` [B, C, H, W] uint8, changed by ``codes`` [ops, B] of :meth:`draw`."""
        functional = operators()
        images = images.clone()
        for row in codes:
            for code in np.unique(row):
                function, magnitude = self._decoded(int(code))
                if function is not FUNCTIONS["identity"]:
                    at = from_numpy(np.flatnonzero(row == code)).to(images.device, non_blocking=True)
                    images[at] = function(functional, images[at], magnitude)
        return images

    def _decoded(self, code: int) -> tuple[Function, float]:
        rest, negative = divmod(code, 2)
        chosen, level = divmod(rest, MAX_LEVEL + 1)
        operation = SPACES[self.space][chosen]
        magnitude = operation.magnitude(level)
        return FUNCTIONS[operation.name], -magnitude if negative else magnitude


def operators() -> ModuleType:
    """Return torchvision's functions on images."""
    return import_module("torchvision.transforms.v2.functional")


def require_operators(what: str, channels: int) -> None:
    """Raise :class:`ConfigError` if ``what`` can't be applied to images of ``channels``, or torchvision is missing."""
    require("torchvision.transforms.v2.functional", "torchvision", what)
    if channels not in CHANNELS:
        raise ConfigError(f"{what} takes images of {' or '.join(map(str, CHANNELS))} channels, got {channels}")


def policy_of(config: DataConfig, channels: int) -> Policy | None:
    """Return the policy that ``config`` names, for images of ``channels``; None for none.

    Raises:
        ConfigError: It can't be applied to such images, or torchvision is missing.
    """
    if config.auto_augment == "none":
        return None
    require_operators(f"data.auto_augment={config.auto_augment}", channels)
    if config.auto_augment == "trivialaugment":
        return Policy("trivialaugment", 1)
    ops, level = config.randaugment_ops, config.randaugment_magnitude
    return Policy("randaugment", OPS if ops is None else ops, LEVEL if level is None else level)
