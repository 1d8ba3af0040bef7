"""Class-balanced splits, fixed by a constant key: every seed trains and validates on the same images."""

from __future__ import annotations

import numpy as np
from torch import Tensor, from_numpy

from sftn_fast.config import check
from sftn_fast.data.seeding import generator


def balanced_order(labels: Tensor, purpose: str) -> Tensor:
    """Return an order of all images in which every prefix is as class-balanced as possible.

    The images are shuffled, then dealt out in rounds: one image of each class, a second of each, and so on. A class
    that runs out is skipped. Smaller subsets are therefore contained in larger ones.

    Args:
        labels: [N] int64.
        purpose: Name of the order; another name gives an unrelated one.

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
    """Return ascending indices [size] int64 of a class-balanced subset of ``labels`` [N]."""
    return balanced_order(labels, purpose)[:size].sort().values


def train_val_indices(labels: Tensor, train_size: int | None, val_size: int) -> tuple[Tensor, Tensor]:
    """Split the training images into those to train on and those to hold out for validation.

    The validation images do not depend on ``train_size``, and neither part depends on a seed.

    Args:
        labels: [N] int64, of the whole training set.
        train_size: Number of images to train on; None for all that are not held out.
        val_size: Number of images to hold out.

    Returns:
        Two ascending, disjoint index tensors: [train_size], [val_size].

    Raises:
        ConfigError: There are fewer images than ``train_size`` and ``val_size`` ask for.
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
