"""Order of the images in an epoch, and the share of each batch that a rank gets; the same for every loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from sftn_fast.config import check
from sftn_fast.data.seeding import generator

MIN_SHARE = 2  # samples per rank; with one, BatchNorm has no variance


class ShuffledSampler:
    """Base of the training loaders: a shuffled order, of which each rank gets an equal share of every global batch.

    A share is contiguous. The last, partial batch of an epoch is kept. With several ranks it is cut to a multiple of
    their number, because gradients are averaged over ranks as if shares were equal. The images cut off, fewer than
    ``world_size``, differ from epoch to epoch. The partial batch is dropped if a rank would get fewer than 2 images.

    Args:
        num_train: Number of images in the split.
        seed: The run's seed.
        batch_size: Images per step, over all ranks.
        rank, world_size: The share of each batch that this process gets.

    Attributes:
        samples: Number of images in an epoch over all ranks; each is shown once.
        deterministic: Whether the pixels of a step, not only its order, are a function of seed, epoch and step. Set by
            the loaders.

    Raises:
        ConfigError: The batches can't be shared out equally with at least 2 images for each rank.
    """

    deterministic: ClassVar[bool] = False

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
        """Return the steps per epoch, the same on all ranks."""
        return -(-self.samples // self.batch_size)

    def order(self, epoch: int) -> np.ndarray:
        """Return the order of the images in ``epoch``: a permutation [num_train] int64."""
        return generator(self.seed, epoch, "order").permutation(self.num_train)

    def shares(self, start: int) -> Iterator[slice]:
        """Iterate over this rank's slices of the epoch's order, one per step, from step ``start`` on.

        Raises:
            ValueError: ``start`` is outside ``0 .. len(self)``. Raised at the call, not at the first step.
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


def sequential_batches(count: int, rank: int, world_size: int, batch_size: int) -> list[range]:
    """Return this rank's batches of a split of ``count`` images in order, as ranges of indices.

    A rank's share is contiguous. Shares differ by at most one image, so that ranks may have different numbers of
    batches.
    """
    first, end = count * rank // world_size, count * (rank + 1) // world_size
    return [range(start, min(start + batch_size, end)) for start in range(first, end, batch_size)]
