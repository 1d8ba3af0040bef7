"""Undoing the steps of a warm-up, which are taken before training begins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sftn_fast.engine.rng import rng_state, set_rng_state


@contextlib.contextmanager
def rollback(tensors: list[Tensor], scaler: torch.amp.GradScaler, device: torch.device) -> Iterator[None]:
    """Undo the steps taken inside this context, in place and also after an exception.

    Args:
        tensors: all that a step writes to: parameters, buffers, momenta and so on.
        scaler: restored too, like the global random number generators, including that of ``device``.
        device: where the steps run.
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
