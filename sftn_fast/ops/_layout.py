"""Dense memory for feature maps: kernels know contiguous and channels-last ones, see ``csrc/map.h``."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def same_layout(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The maps ``[N, C, ...]`` in one dense layout: the first one's, contiguous if it has none. Copies what differs."""
    memory_format = torch.contiguous_format
    if not first.is_contiguous():
        last = _CHANNELS_LAST.get(first.dim())
        if last is not None and first.is_contiguous(memory_format=last):
            memory_format = last
    return tuple(x.contiguous(memory_format=memory_format) for x in (first, *others))
