"""What several batches hold together, whichever loader gave them, and what a loader must leave alone."""

from __future__ import annotations

import random

import numpy as np
import torch


def joined(batches):
    """Images, targets and indices of several batches, one after the other."""
    parts = [(batch.images, batch.target, batch.index) for batch in batches]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def same(first, second):
    """Whether the batches of both hold the same bits."""
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


def rng_states():
    """The states of the global random generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
