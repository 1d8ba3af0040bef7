"""Detection of the channel axis of a network's maps: the axis that does not change with the size of the images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx, nn

from sftn_fast.models.copying import copy_network, copy_without_data

SIZES = ((64, 96), (96, 160), (224, 224), (224, 320), (32, 32), (32, 48), (28, 28), (299, 299), (16, 16), (8, 8))
"""Heights and widths of the images to try. Sizes that are not square come first, since (C, H, W) and (H, W, C) of a
square image can look alike. The square ones are for networks that accept a single size."""
ENOUGH = 2
BATCH = 2


class Layout(NamedTuple):
    """The order in which a network holds a map [N, C, H, W]: another order of its axes, or tokens [N, H * W, C]."""

    axes: tuple[int, int, int, int] = (0, 1, 2, 3)
    """Permutation from [N, C, H, W] to the network's own order."""
    grid: tuple[int, int] | None = None
    """Height and width of the map that the tokens are; None for a map."""

    def to_own(self, part: fx.Graph, node: fx.Node) -> fx.Node:
        """Append the steps from [N, C, H, W] to the network's own order."""
        if self.grid is not None:
            return part.call_method("transpose", (part.call_method("flatten", (node, 2)), 1, 2))
        return self._permuted(part, node, self.axes)

    def to_ours(self, part: fx.Graph, node: fx.Node) -> fx.Node:
        """Append the steps from the network's own order to [N, C, H, W]."""
        if self.grid is not None:
            return part.call_method("unflatten", (part.call_method("transpose", (node, 1, 2)), 2, self.grid))
        back = [self.axes.index(axis) for axis in range(4)]
        return self._permuted(part, node, tuple(back))

    def _permuted(self, part: fx.Graph, node: fx.Node, axes: tuple[int, ...]) -> fx.Node:
        return node if self == IN_ORDER else part.call_method("permute", (node, *axes))


IN_ORDER = Layout()
CHANNELS_LAST = Layout((0, 2, 3, 1))

Shapes = dict[tuple[int, int], tuple[int, ...]]
"""Shapes of one map by the size of the images."""


def find_layouts(parts: Sequence[nn.Module], in_channels: int, names: Sequence[str]) -> list[Layout]:
    """Return the layout of the output of each of ``parts``, which run one after the other.

    Runs copies of the parts in evaluation mode; neither the parts nor torch's random state change.

    Args:
        parts: Modules, each of which takes the output of the one before.
        in_channels: Channels of the images that the first part takes.
        names: Names of the parts, for messages.

    Raises:
        ValueError: The output of a part is no map, or its channel axis is ambiguous.
    """
    seen = _probe(copy_without_data(nn.ModuleList(parts)), in_channels, torch.device("meta"))
    if not seen[-1]:  # a part may read values, which tensors on the meta device don't have
        seen = _probe(copy_network(nn.ModuleList(parts)).cpu(), in_channels, torch.device("cpu"))
    return [_layout(shapes, name) for shapes, name in zip(seen, names, strict=True)]


def _probe(parts: nn.ModuleList, in_channels: int, device: torch.device) -> list[Shapes]:
    """Return the shapes of each part's output, by image size, for up to :data:`ENOUGH` sizes that are not square."""
    parts.eval()
    seen: list[Shapes] = [{} for _ in parts]
    dtype = next((tensor.dtype for tensor in parts.parameters() if tensor.is_floating_point()), torch.float32)
    for size in SIZES:
        if sum(height != width for height, width in seen[-1]) == ENOUGH:
            break
        x = torch.zeros(BATCH, in_channels, *size, device=device, dtype=dtype)
        try:
            # The parts may draw random numbers; the user's generator must not advance.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                for part, shapes in zip(parts, seen, strict=True):
                    x = part(x)
                    shapes[size] = tuple(x.shape)
        except Exception:  # a network may refuse a size with any error
            continue
    return seen


def _layout(shapes: Shapes, name: str) -> Layout:
    for shape in shapes.values():
        if len(shape) != 4 or shape[0] != BATCH:
            raise ValueError(_no_map(shape, name))
    if not shapes:
        return IN_ORDER  # PyTorch's own order, if the network ran on none of the sizes
    constant = [axis for axis in (1, 2, 3) if len({shape[axis] for shape in shapes.values()}) == 1]
    if constant == [1] or constant == [3]:
        return IN_ORDER if constant == [1] else CHANNELS_LAST
    return _layout_by_proportion(shapes, name)


def _layout_by_proportion(shapes: Shapes, name: str) -> Layout:
    """Return the layout in which H / W is nearest to that of the images, for maps of which only one size is known."""
    size, shape = next(iter(shapes.items()))
    if shape[2:] == (1, 1):
        return IN_ORDER
    first = _unlikeness(shape[2:], size)
    last = _unlikeness(shape[1:3], size)
    if len(shapes) > 1 and first:  # pooled to a fixed size, which is square rather than like the images
        first, last = _unlikeness(shape[2:], (1, 1)), _unlikeness(shape[1:3], (1, 1))
    if first == last:
        raise ValueError(
            f"{name} gives {_show(shape)} for images of {size[0]} x {size[1]}, and it is unclear which axis is the "
            f"channels': end the stage in a module that gives [N, C, H, W] and not as many channels as rows"
        )
    return IN_ORDER if first < last else CHANNELS_LAST


def _unlikeness(axes: tuple[int, ...], size: tuple[int, int]) -> float:
    return abs(math.log(axes[0] * size[1]) - math.log(axes[1] * size[0])) if 0 not in axes else math.inf


def _no_map(shape: tuple[int, ...], name: str) -> str:
    if len(shape) == 3:
        return (
            f"{name} gives tokens {_show(shape)} and no map [N, C, H, W]: reshape them to a map in a module of yours; "
            f"for methods on logits alone, as_staged(nn.Sequential(nn.Identity(), net), ['0'], head='1') is enough"
        )
    return f"{name} gives {_show(shape)} and no map [N, C, H, W]: name modules that give maps"


def _show(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N' if shape[0] == BATCH else str(shape[0]), *map(str, shape[1:])])}]"
