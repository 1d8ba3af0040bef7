"""Comparison of batches from any loader, and the random state that a loader must not change."""

from __future__ import annotations

import random

import numpy as np
import torch


def joined(batches):
    """Concatenate images, targets and indices of several batches."""
    parts = [(batch.images, batch.target, batch.index) for batch in batches]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def same(first, second):
    """Return whether both sequences of batches are bit-identical."""
    return all(torch.equal(a, b) for a, b in zip(joined(first), joined(second), strict=True))


def rng_states():
    """Return the states of the global random generators."""
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
