"""In what order a training split is gone through, and which part of each batch is whose: for every loader alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from sftn_fast.config import check
from sftn_fast.data.keyed import generator

MIN_SHARE = 2  # samples a rank, below which BatchNorm has no variance to speak of


class ShuffledShares:
    """The steps of an epoch; each rank gets an equal, contiguous share of every global batch.

    The last, partial batch of an epoch is kept. Over several ranks it is cut to a multiple of their number, because
    gradients are averaged over ranks as if their shares were equal; the images left out, fewer than ``world_size``,
    differ from epoch to epoch. It is dropped where a rank would get fewer than 2 images.

    Args:
        num_train: Images in the split.
        seed: Run's seed.
        batch_size: Images a step, over all ranks together.
        rank, world_size: Which share of each batch is ours.

    Attributes:
        samples: Images that an epoch shows over all ranks, each once.
        keyed: Whether the images of a step, and not their order alone, are a function of seed, epoch and step; for
            loaders to declare.

    Raises:
        ConfigError: The batches can't be shared out equally with at least 2 images for each rank.
    """

    keyed: ClassVar[bool] = False

    def __init__(self, num_train: int, *, seed: int, batch_size: int, rank: int, world_size: int) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
        key = "optim.batch_size"
        check(batch_size % world_size == 0, key, batch_size, f"divisible by the {world_size} ranks")
        enough = f"{MIN_SHARE} or more for each of {world_size} ranks"
        check(batch_size >= MIN_SHARE * world_size, key, batch_size, enough)
        self.num_train, self.seed, self.batch_size = num_train, seed, batch_size
        self.rank, self.world_size = rank, world_size
        self.samples = _samples_an_epoch(num_train, batch_size, world_size)
        check(self.samples > 0, "training images", num_train, enough)

    def __len__(self) -> int:
        """Steps an epoch, the same on all ranks."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """The images of ``epoch`` in their order: a permutation [num_train] int64."""
        return generator(self.seed, epoch, "order").permutation(self.num_train)

    def shares(self, start: int) -> Iterator[slice]:
        """This rank's places in the epoch's order, step by step from ``start`` on.

        Raises:
            ValueError: ``start`` lies outside ``0 .. len(self)``; at once, not at the first step.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be from 0 to {len(self)}, got {start}")
        return map(self._share, range(start, len(self)))

    def _share(self, step: int) -> slice:
        first = step * self.batch_size
        share = min(self.batch_size, self.samples - first) // self.world_size
        first += self.rank * share
        return slice(first, first + share)


def _samples_an_epoch(num_train: int, batch_size: int, world_size: int) -> int:
    full = num_train - num_train % batch_size
    share = (num_train - full) // world_size
    return full + (share * world_size if share >= MIN_SHARE else 0)


def in_order(count: int, rank: int, world_size: int, batch_size: int) -> list[range]:
    """This rank's batches of a split that is gone through once, in order.

    A rank's share is contiguous; shares differ by one image at most, so ranks may differ in their number of batches.
    """
    first, end = count * rank // world_size, count * (rank + 1) // world_size
    return [range(start, min(start + batch_size, end)) for start in range(first, end, batch_size)]
