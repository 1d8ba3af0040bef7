"""The mode in which a teacher runs: evaluation, no gradients, its current weights.

Nothing derived from the weights is kept from one pass to the next. Weights can change without a trace: by a fused
optimizer, through ``p.data``, in inference mode, by a collective, or by an operator in C++. A copy with its
BatchNorms folded, or in half precision, could not detect that it is out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def teacher_mode(net: nn.Module) -> Iterator[None]:
    """Run ``net`` in evaluation mode and without gradients inside this context.

    On exit each module is back in its previous mode. Costs a loop over the modules and no work on the device.
    """
    # torch.compile can't trace a change of mode; a distiller's teachers are in evaluation mode already.
    if torch.compiler.is_compiling():
        with torch.no_grad():
            yield
        return
    learning = [module for module in net.modules() if module.training]
    remembers_casts = torch.is_autocast_cache_enabled()
    try:
        for module in learning:
            module.training = False
        # In a context that spans several steps, autocast's cache would hold casts of earlier weights.
        torch.set_autocast_cache_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(remembers_casts)
        for module in learning:
            module.training = True
