"""Batches of images that lie on the device already.

What a step of training sees is a pure function of ``(seed, epoch, step)``. The order, the crops and the flips of an
epoch are drawn when it begins, for the global batches, and moved to the device in one copy; a rank, or a run that
resumes in the middle, takes its slice. There is no state to save.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, from_numpy

from sftn_fast.config import check
from sftn_fast.data.augment import crop_flip, normalize
from sftn_fast.data.keyed import generator
from sftn_fast.data.source import Images

EVAL_BATCH_SIZE = 256
MIN_SHARE = 2  # samples a rank, below which BatchNorm has no variance to speak of


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step."""

    images: Tensor  # [B, C, H, W] float32, augmented and normalised; [B, V, C, H, W] from a loader of V views
    target: Tensor  # [B] int64
    index: Tensor  # [B] int64, the place of each image in its split, the same in every epoch


@dataclass(frozen=True)
class DeviceImages:
    """One split on the device: uint8, a quarter of what float32 would take."""

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64
    mean: Tensor  # [C, 1, 1] float32
    std: Tensor  # [C, 1, 1] float32

    @classmethod
    def place(
        cls, images: Images, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> DeviceImages:
        """Move ``images`` and the normalisation's constants to ``device``."""
        constants = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
        return cls(images.pixels.to(device), images.labels.to(device), *constants)

    def __len__(self) -> int:
        return len(self.labels)


class TrainLoader:
    """Shuffled, augmented batches; each rank gets an equal, contiguous share of every global batch.

    The last, partial batch of an epoch is kept. Over several ranks it is cut to a multiple of their number, because
    gradients are averaged over ranks as if their shares were equal; the images left out, fewer than ``world_size``,
    differ from epoch to epoch. It is dropped where a rank would get fewer than 2 images.

    Args:
        data: The training split.
        seed: Run's seed.
        batch_size: Images a step, over all ranks together.
        crop_padding: Pixels of zeros around the image before a window of its size is cut out; 0 for no crop.
        flip: Mirror every other image, on average.
        rank, world_size: Which share of each batch is ours.

    Raises:
        ConfigError: The batches can't be shared out equally with at least 2 images for each rank.
    """

    def __init__(
        self,
        data: DeviceImages,
        *,
        seed: int,
        batch_size: int,
        crop_padding: int,
        flip: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to {world_size - 1}, got {rank}")
        key = "optim.batch_size"
        check(batch_size % world_size == 0, key, batch_size, f"divisible by the {world_size} ranks")
        enough = f"{MIN_SHARE} or more for each of {world_size} ranks"
        check(batch_size >= MIN_SHARE * world_size, key, batch_size, enough)
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.crop_padding, self.flip = crop_padding, flip
        self.rank, self.world_size = rank, world_size
        self.views = 1
        self._samples = _samples_an_epoch(len(data), batch_size, world_size)
        check(self._samples > 0, "training images", len(data), enough)

    def __len__(self) -> int:
        """Steps an epoch, the same on all ranks."""
        return -(-self._samples // self.batch_size)

    def with_views(self, views: int) -> TrainLoader:
        """The same batches with ``views`` augmentations of each image, independent of each other; the first is ours."""
        other = copy.copy(self)
        other.views = views
        return other

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from step ``start`` on, bit for bit those that a whole epoch has there.

        Raises:
            ValueError: ``start`` lies outside ``0 .. len(self)``.
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be from 0 to {len(self)}, got {start}")
        return self._steps(self._draw(epoch), start)

    def _steps(self, draws: Tensor, start: int) -> Iterator[Batch]:
        for step in range(start, len(self)):
            first = step * self.batch_size
            share = min(self.batch_size, self._samples - first) // self.world_size
            first += self.rank * share
            yield self._batch(draws[:, first : first + share])

    def _batch(self, draws: Tensor) -> Batch:
        index = draws[0]
        pixels = self.data.pixels.index_select(0, index)
        views = [self._augmented(pixels, *view) for view in draws[1:].unflatten(0, (self.views, 3))]
        return Batch(
            images=views[0] if self.views == 1 else torch.stack(views, dim=1),
            target=self.data.labels.index_select(0, index),
            index=index,
        )

    def _augmented(self, pixels: Tensor, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
        if self.crop_padding or self.flip:
            pixels = crop_flip(pixels, top, left, flipped.bool(), self.crop_padding)
        return normalize(pixels, self.data.mean, self.data.std)

    def _draw(self, epoch: int) -> Tensor:
        """Image, then window's top, window's left and flip of each view, of every place in the epoch.

        [1 + 3 views, num_train] int64. Each from a stream of its own, so that the order does not change when the
        augmentation does, nor one view with another.
        """
        count, offsets = len(self.data), 2 * self.crop_padding + 1
        draws = torch.empty(1 + 3 * self.views, count, dtype=torch.int64)
        draws[0] = from_numpy(generator(self.seed, epoch, "order").permutation(count))
        for number, view in enumerate(draws[1:].split(3)):
            key = (number,) if number else ()
            view[:2] = from_numpy(generator(self.seed, epoch, "crop", *key).integers(offsets, size=(2, count)))
            view[2] = from_numpy(generator(self.seed, epoch, "flip", *key).integers(2 if self.flip else 1, size=count))
        return draws.to(self.data.labels.device)


def _samples_an_epoch(num_train: int, batch_size: int, world_size: int) -> int:
    full = num_train - num_train % batch_size
    share = (num_train - full) // world_size
    return full + (share * world_size if share >= MIN_SHARE else 0)


class EvalLoader:
    """Batches of a split in order, not augmented, each image exactly once over all ranks.

    A rank's shard is contiguous; shards differ by one image at most, so ranks may differ in their number of batches:
    sum up locally, and reduce after the loop.
    """

    def __init__(self, data: DeviceImages, *, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        self.num_samples = len(data)  # over all ranks
        self._first = len(data) * rank // world_size
        self._end = len(data) * (rank + 1) // world_size

    def __len__(self) -> int:
        """Batches on this rank."""
        return -(-(self._end - self._first) // EVAL_BATCH_SIZE)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(self._first, self._end, EVAL_BATCH_SIZE):
            rows = slice(first, min(first + EVAL_BATCH_SIZE, self._end))
            yield Batch(
                images=normalize(self.data.pixels[rows], self.data.mean, self.data.std),
                target=self.data.labels[rows],
                index=torch.arange(rows.start, rows.stop, device=self.data.labels.device),
            )
