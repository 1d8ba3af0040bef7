"""Steps that leave no trace, for whoever has to try some before training begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sftn_fast.engine.rng import rng_state, set_rng_state


@contextlib.contextmanager
def rehearsal(tensors: list[Tensor], scaler: torch.amp.GradScaler, device: torch.device) -> Iterator[None]:
    """Context whose steps are undone at its end, in place and however it ends.

    Args:
        tensors: what steps write to: parameters, buffers, momenta and whatever else is to be as before.
        scaler: put back too, and so are the global random number generators, that of ``device`` included.
    """
    saved = [tensor.detach().clone() for tensor in tensors]
    scale, generators = scaler.state_dict(), rng_state(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
        if scale:
            scaler.load_state_dict(scale)
        set_rng_state(generators, device)
