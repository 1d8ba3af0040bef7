"""Dense memory layouts for feature maps. Kernels read contiguous and channels-last maps, see ``csrc/map.h``."""

from __future__ import annotations

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def same_layout(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Bring maps ``[N, C, ...]`` to the dense layout of the first, or to contiguous if it has none.

    Only maps in another layout are copied.
    """
    memory_format = torch.contiguous_format
    if not first.is_contiguous():
        last = _CHANNELS_LAST.get(first.dim())
        if last is not None and first.is_contiguous(memory_format=last):
            memory_format = last
    return tuple(x.contiguous(memory_format=memory_format) for x in (first, *others))
