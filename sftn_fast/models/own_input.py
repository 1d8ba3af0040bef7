"""Images for a network that knows another mean and deviation than the data's.

Published weights belong to the normalisation that they were trained with. The data is normalised once, for all
networks, so such a network changes its input first: ``x * scale + shift`` for each channel, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sftn_fast.models.weight_files import WeightsError

KEY = "own_input"
"""Key of ``config.json`` that describes such a change; other networks don't have it."""
BOUND = 1e9
"""Largest factor and summand that a description may ask for."""


class OwnInput(nn.Module):
    """Change of images from the data's normalisation to a network's own.

    Grey images [N, 1, H, W] become as many channels as the network has.

    Args:
        scale: Factor of each of the network's channels.
        shift: Summand of each channel.
    """

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        # Not persistent: config.json has them, and the names of the weights stay the network's.
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the images that the network knows."""
        return x * self.scale + self.shift  # type: ignore[operator]

    # No property: torch.jit.script would compile it.
    def channels(self) -> int:
        """Channels of the network."""
        return len(self.numbers()[0])

    def numbers(self) -> tuple[list[float], list[float]]:
        """Return factor and summand of each channel."""
        return cast(Tensor, self.scale).flatten().tolist(), cast(Tensor, self.shift).flatten().tolist()


def change_of_input(
    mean: Sequence[float], std: Sequence[float], own_mean: Sequence[float], own_std: Sequence[float]
) -> OwnInput | None:
    """Return the change from images normalised by ``mean`` and ``std`` to the network's own; None if they are equal.

    Raises:
        ValueError: The network has another number of channels than the images, which are not grey either.
    """
    if tuple(mean) == tuple(own_mean) and tuple(std) == tuple(own_std):
        return None
    if len(mean) not in (1, len(own_mean)):
        raise ValueError(f"its weights are for images of {len(own_mean)} channels, and these have {len(mean)}")
    wide = len(own_mean) // len(mean)
    pairs = list(zip((*mean,) * wide, (*std,) * wide, own_mean, own_std, strict=True))
    return OwnInput([s / own for _, s, _, own in pairs], [(m - own_m) / own for m, _, own_m, own in pairs])


def after(change: OwnInput | None, first: OwnInput | None) -> OwnInput | None:
    """Return one change that does ``first`` and then ``change``."""
    if change is None or first is None:
        return first if change is None else change
    (scale, shift), (scale_before, shift_before) = change.numbers(), first.numbers()
    scales = [own * before for own, before in zip(scale, scale_before, strict=True)]
    shifts = [own * before + more for own, before, more in zip(scale, shift_before, shift, strict=True)]
    return OwnInput(scales, shifts)


def describe_input(change: OwnInput | None) -> dict[str, Any]:
    """Return what ``config.json`` tells of a network's input; empty for a network that takes the data's images."""
    if change is None:
        return {}
    scale, shift = change.numbers()
    return {KEY: {"scale": scale, "shift": shift}}


def read_input(config: Mapping[str, Any], place: str) -> OwnInput | None:
    """Return the change that ``config``, the content of ``place``, describes; None if it describes none.

    Raises:
        WeightsError: The description is damaged.
    """
    if KEY not in config:
        return None
    description = config[KEY]
    scale, shift = (description.get(key) for key in ("scale", "shift"))
    usable = _are_numbers(scale) and _are_numbers(shift) and len(scale) == len(shift) and 0 not in scale
    if not usable or description.keys() != {"scale", "shift"}:
        raise WeightsError(f"{place} is damaged: {KEY!r} must have a scale and a shift, two lists of as many numbers")
    return OwnInput(scale, shift)


def _are_numbers(values: Any) -> bool:
    plain = isinstance(values, list) and all(type(each) in (int, float) for each in values)
    return plain and len(values) > 0 and all(abs(each) <= BOUND for each in values)
