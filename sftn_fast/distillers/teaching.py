"""How a teacher is run: with the weights that it has, in evaluation mode, without gradients.

Nothing that follows from the weights is kept from one pass to the next. They can be written in ways that leave no mark:
by a fused optimizer, through ``p.data``, in inference mode, by a collective, by an operator in C++. No copy with its
BatchNorms folded, and no cast to half precision, could know when it is out of date.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def teaching(net: nn.Module) -> Iterator[None]:
    """Context in which ``net`` is in evaluation mode and whatever it computes carries no gradient.

    Outside each of its modules is in the mode that it was in. Costs a look at each module, without the device.
    """
    if torch.compiler.is_compiling():  # which traces no change of mode; a distiller's teachers are in theirs
        with torch.no_grad():
            yield
        return
    learning = [module for module in net.modules() if module.training]
    remembers_casts = torch.is_autocast_cache_enabled()
    try:
        for module in learning:
            module.training = False
        # Autocast would take the casts of earlier weights, in a context that spans several steps.
        torch.set_autocast_cache_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(remembers_casts)
        for module in learning:
            module.training = True
