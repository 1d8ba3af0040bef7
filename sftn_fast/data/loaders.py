"""Batches of images that lie on the device already.

What a step of training sees is a pure function of ``(seed, epoch, step)``. The order, the crops and the flips of an
epoch are drawn when it begins, for the global batches, and moved to the device in one copy; a rank, or a run that
resumes in the middle, takes its slice. There is no state to save.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, from_numpy

from sftn_fast.data.augment import crop_flip, normalize
from sftn_fast.data.keyed import generator
from sftn_fast.data.shares import ShuffledShares, in_order
from sftn_fast.data.source import Images

EVAL_BATCH_SIZE = 256


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step."""

    images: Tensor  # [B, C, H, W] float32, augmented and normalised; [B, V, C, H, W] from a loader of V views
    target: Tensor  # [B] int64
    index: Tensor  # [B] int64, the place of each image in its split, the same in every epoch


@dataclass(frozen=True)
class Recipe:
    """A batch that is yet to be made: of which tensors, and what makes it of them without waiting for the device."""

    index: Tensor  # [B] int64, as the batch's
    tensors: tuple[Tensor, ...]
    make: Callable[..., Batch]

    @classmethod
    def of(cls, batch: Any) -> Recipe:
        """``batch``, if it is a recipe; else that of a batch that is made already."""
        if isinstance(batch, cls):
            return batch
        return cls(batch.index, (batch.images, batch.target, batch.index), Batch)


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


class TrainLoader(ShuffledShares):
    """Shuffled, augmented batches of a training split.

    Args:
        data: The training split.
        seed: Run's seed.
        batch_size: Images a step, over all ranks together.
        crop_padding: Pixels of zeros around the image before a window of its size is cut out; 0 for no crop.
        flip: Mirror every other image, on average.
        rank, world_size: Which share of each batch is ours.

    Raises:
        ConfigError: The batches can't be shared out; see :class:`~sftn_fast.data.shares.ShuffledShares`.
    """

    keyed = True

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
        super().__init__(len(data), seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        self.data, self.crop_padding, self.flip = data, crop_padding, flip
        self.views = 1

    @property
    def labels(self) -> Tensor:
        """Classes of the split [num_train] int64."""
        return self.data.labels

    @property
    def augments(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return bool(self.crop_padding or self.flip)

    def augmentation(self) -> dict[str, str | int]:
        """What is done to an image before it is trained on, for the run's fingerprint."""
        return {"crop_padding": self.crop_padding, "flip": int(self.flip)}

    def unaugmented(self) -> EvalLoader:
        """The same images in order, as they are."""
        return EvalLoader(self.data)

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
        return (recipe.make(*recipe.tensors) for recipe in self.recipes(epoch, start))

    def recipes(self, epoch: int, start: int = 0) -> Iterator[Recipe]:
        """What :meth:`epoch` makes its batches of, for a step that makes them itself."""
        shares = self.shares(start)
        draws = self._draw(epoch)
        return (Recipe(draws[0, share], (draws[:, share],), self._batch) for share in shares)

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
        draws[0] = from_numpy(self.order(epoch))
        for number, view in enumerate(draws[1:].split(3)):
            key = (number,) if number else ()
            view[:2] = from_numpy(generator(self.seed, epoch, "crop", *key).integers(offsets, size=(2, count)))
            view[2] = from_numpy(generator(self.seed, epoch, "flip", *key).integers(2 if self.flip else 1, size=count))
        return draws.to(self.data.labels.device)


class EvalLoader:
    """Batches of a split in order, not augmented, each image exactly once over all ranks.

    Ranks may differ in their number of batches: sum up locally, and reduce after the loop.
    """

    def __init__(self, data: DeviceImages, *, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        self.num_samples = len(data)  # over all ranks
        self._batches = in_order(len(data), rank, world_size, EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            rows = slice(batch.start, batch.stop)
            yield Batch(
                images=normalize(self.data.pixels[rows], self.data.mean, self.data.std),
                target=self.data.labels[rows],
                index=torch.arange(rows.start, rows.stop, device=self.data.labels.device),
            )
