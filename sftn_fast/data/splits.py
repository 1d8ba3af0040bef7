"""Class-balanced choices, fixed by a constant key: every seed trains and validates on the same images."""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from sftn_fast.config import check
from sftn_fast.data.keyed import generator


def balanced_order(labels: Tensor, purpose: str) -> Tensor:
    """An order of all images in which every prefix is as class-balanced as it can be.

    Shuffles, then deals the classes out in rounds: one image of each class, a second of each, and so on; a class that
    runs out is skipped. Smaller choices are therefore subsets of larger ones.

    Args:
        labels: [N] int64.
        purpose: Names the choice; another purpose gives an unrelated order.

    Returns:
        [N] int64, a permutation.
    """
    shuffled = generator("balanced order", purpose).permutation(len(labels))
    classes = labels.numpy()[shuffled]
    by_class = np.argsort(classes, kind="stable")
    counts = np.bincount(classes)
    first_of_class = np.repeat(np.cumsum(counts) - counts, counts)
    round_of = np.empty_like(by_class)
    round_of[by_class] = np.arange(len(classes)) - first_of_class
    return from_numpy(shuffled[np.argsort(round_of, kind="stable")])


def balanced_choice(labels: Tensor, size: int, purpose: str) -> Tensor:
    """Indices [size] int64, ascending, of a class-balanced choice among ``labels`` [N]."""
    return balanced_order(labels, purpose)[:size].sort().values


def train_val_indices(labels: Tensor, train_size: int | None, val_size: int) -> tuple[Tensor, Tensor]:
    """Which training images to train on and which to hold out.

    The validation images do not depend on ``train_size``, nor either choice on a seed.

    Args:
        labels: [N] int64, of the whole training set.
        train_size: Images to train on, None for all that are not held out.
        val_size: Images to hold out.

    Returns:
        Two ascending, disjoint index tensors: [train_size], [val_size].

    Raises:
        ConfigError: There are not so many images.
    """
    available = len(labels)
    check(val_size <= available - 2, "data.val_size", val_size, f"at most {available - 2} ({available} images less 2)")
    remaining = available - val_size
    allowed = f"at most {remaining} ({available} images less data.val_size={val_size})"
    check(train_size is None or train_size <= remaining, "data.train_size", train_size, allowed)

    order = balanced_order(labels, "validation")
    val, rest = order[:val_size].sort().values, order[val_size:].sort().values
    if train_size is None:
        return rest, val
    return rest[balanced_choice(labels[rest], train_size, "train")], val
