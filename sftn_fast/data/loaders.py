"""Loaders for images that are kept on the device.

A training batch is a pure function of ``(seed, epoch, step)``. The order, crops and flips of an epoch are drawn for the
global batches when the epoch starts, and copied to the device at once. A rank, or a run that resumes inside an epoch,
uses its slice. There is no state to save.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, from_numpy

from sftn_fast.data.augment import crop_flip, normalize
from sftn_fast.data.boxes import fill_boxes
from sftn_fast.data.sampler import ShuffledSampler, sequential_batches
from sftn_fast.data.seeding import generator
from sftn_fast.data.source import Images
from sftn_fast.data.views import PLAIN, View, several_views

EVAL_BATCH_SIZE = 256
CROP_ROWS, BOX_ROWS = 3, 4
"""Random numbers of a crop with its flip, and of a box."""


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    images: Tensor  # [B, C, H, W] float32, augmented and normalised; [B, V, C, H, W] from a loader of V views
    target: Tensor  # [B] int64; [B, num_classes] float32 if images are mixed or labels smoothed
    index: Tensor  # [B] int64, the index of each image in its split, the same in every epoch


@dataclass(frozen=True)
class DeferredBatch:
    """A batch that is not computed yet: its inputs, and the function that computes it without a synchronisation."""

    index: Tensor  # [B] int64, as in the batch
    tensors: tuple[Tensor, ...]
    make: Callable[..., Batch]

    @classmethod
    def of(cls, batch: Batch | DeferredBatch) -> DeferredBatch:
        """Return ``batch`` itself if it is deferred, else wrap it."""
        if isinstance(batch, DeferredBatch):
            return batch
        return cls(batch.index, (batch.images, batch.target, batch.index), Batch)


@dataclass(frozen=True)
class DeviceImages:
    """A split on the device, as uint8: a quarter of the memory of float32."""

    pixels: Tensor  # [N, C, H, W] uint8
    labels: Tensor  # [N] int64
    mean: Tensor  # [C, 1, 1] float32
    std: Tensor  # [C, 1, 1] float32

    @classmethod
    def place(
        cls, images: Images, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
    ) -> DeviceImages:
        """Copy ``images`` and the constants of the normalisation to ``device``."""
        constants = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
        return cls(images.pixels.to(device), images.labels.to(device), *constants)

    def __len__(self) -> int:
        return len(self.labels)


class TrainLoader(ShuffledSampler):
    """Shuffled, augmented batches of a training split.

    Args:
        data: The training split.
        seed: The run's seed.
        batch_size: Images per step, over all ranks.
        crop_padding: Width in pixels of the zero border from which a window is cut; 0 for no crop.
        flip: Mirror each image with probability 1/2.
        view: What happens to the images after that.
        rank, world_size: The share of each batch that this process gets.

    Raises:
        ConfigError: The batches can't be divided among the ranks; see :class:`~sftn_fast.data.sampler.ShuffledSampler`.
    """

    deterministic = True

    def __init__(
        self,
        data: DeviceImages,
        *,
        seed: int,
        batch_size: int,
        crop_padding: int,
        flip: bool,
        view: View = PLAIN,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(data), seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        self.data, self.crop_padding, self.flip = data, crop_padding, flip
        self._take((view,))

    @property
    def labels(self) -> Tensor:
        """Labels of the split [num_train] int64."""
        return self.data.labels

    @property
    def augments(self) -> bool:
        """True if the pixels of an image differ between epochs."""
        return bool(self.crop_padding or self.flip or self.views[0].augments)

    def augmentation(self) -> dict[str, str | int]:
        """Return the augmentation's settings, for the run's fingerprint."""
        return {"crop_padding": self.crop_padding, "flip": int(self.flip), **self.views[0].settings()}

    def unaugmented(self) -> EvalLoader:
        """Return a loader of the same images in order, without augmentation."""
        return EvalLoader(self.data)

    def with_views(self, views: int, *, strong: bool = False) -> TrainLoader:
        """Return this loader with ``views`` independent augmentations of each image; the first one stays the same.

        Args:
            views: Their number.
            strong: Make the last one a strong view.
        """
        other = copy.copy(self)
        other._take(several_views(self.views[0], views, strong=strong))
        return other

    def _take(self, views: tuple[View, ...]) -> None:
        constants = self.data.mean, self.data.std
        self.views = views
        self._hidden_values = [view.hidden_value(*constants) if view.hides else None for view in views]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of ``epoch`` from step ``start`` on, bit-identical to those of the whole epoch.

        Raises:
            ValueError: ``start`` is outside ``0 .. len(self)``.
        """
        return (deferred.make(*deferred.tensors) for deferred in self.deferred_batches(epoch, start))

    def deferred_batches(self, epoch: int, start: int = 0) -> Iterator[DeferredBatch]:
        """Iterate over the batches of :meth:`epoch` before they are computed, for a graphed step that computes them.

        The operations of a policy are not the same in each batch, as a graph's are. So they run before.
        """
        shares = self.shares(start)
        draws = self._draw(epoch)
        if not any(view.policy for view in self.views):
            return (DeferredBatch(draws[0, share], (draws[:, share],), self._batch) for share in shares)
        codes = self._draw_codes(epoch)
        return (self._changed(draws[:, share], [rows[:, share] for rows in codes]) for share in shares)

    def _changed(self, draws: Tensor, codes: Sequence[np.ndarray]) -> DeferredBatch:
        """Return a batch whose pixels the policies have changed, by ``codes`` [ops, B] of each view."""
        parts = zip(self.views, self._cropped(draws), codes, strict=True)
        changed = [view.policy.apply(pixels, rows) if view.policy else pixels for view, pixels, rows in parts]
        return DeferredBatch(draws[0], (draws, *changed), self._batch)

    def _batch(self, draws: Tensor, *changed: Tensor) -> Batch:
        """Return the batch of ``draws``; ``changed`` are the pixels of the views where policies have changed them."""
        index, pixels = draws[0], changed or self._cropped(draws)
        views = [self._finished(*parts) for parts in zip(pixels, self._rows(draws), self._hidden_values, strict=True)]
        return Batch(
            images=views[0] if len(views) == 1 else torch.stack(views, dim=1),
            target=self.data.labels.index_select(0, index),
            index=index,
        )

    def _cropped(self, draws: Tensor) -> list[Tensor]:
        """Return the pixels of each view after crop and flip: [B, C, H, W] uint8."""
        pixels = self.data.pixels.index_select(0, draws[0])
        if not (self.crop_padding or self.flip):
            return [pixels] * len(self.views)
        return [
            crop_flip(pixels, top, left, flipped.bool(), self.crop_padding)
            for top, left, flipped, *_ in self._rows(draws)
        ]

    def _finished(self, pixels: Tensor, rows: Tensor, hidden_value: Tensor | None) -> Tensor:
        images = normalize(pixels, self.data.mean, self.data.std)
        return images if hidden_value is None else fill_boxes(images, rows[CROP_ROWS:], hidden_value)

    def _rows(self, draws: Tensor) -> tuple[Tensor, ...]:
        """Return the rows of ``draws`` for each view, see :meth:`_draw`."""
        return draws[1:].split([CROP_ROWS + BOX_ROWS * view.hides for view in self.views])

    def _draw(self, epoch: int) -> Tensor:
        """Draw the random numbers of an epoch: [rows, num_train] int64, a column per position in the epoch.

        The rows are the image, then top and left of the window and the flip of each view, and the box of a view that
        hides a part. Each has its own random stream, so that changing the augmentation or the number of views changes
        neither the order nor other views.
        """
        count, offsets = len(self.data), 2 * self.crop_padding + 1
        draws = torch.empty(1 + sum(CROP_ROWS + BOX_ROWS * view.hides for view in self.views), count, dtype=torch.int64)
        draws[0] = from_numpy(self.order(epoch))
        for number, (view, rows) in enumerate(zip(self.views, self._rows(draws), strict=True)):
            key = (number,) if number else ()
            rows[:2] = from_numpy(generator(self.seed, epoch, "crop", *key).integers(offsets, size=(2, count)))
            rows[2] = from_numpy(generator(self.seed, epoch, "flip", *key).integers(2 if self.flip else 1, size=count))
            if view.hides:
                size = self.data.pixels.shape[-1]
                rows[3:] = from_numpy(view.boxes(generator(self.seed, epoch, "box", *key), count, size))
        return draws.to(self.data.labels.device)

    def _draw_codes(self, epoch: int) -> list[np.ndarray]:
        """Draw the codes of the policies' operations, [ops, num_train] for each view."""
        count, codes = len(self.data), []
        for number, view in enumerate(self.views):
            draws = generator(self.seed, epoch, "policy", number)
            codes.append(view.policy.draw(draws, count) if view.policy else np.empty((0, count), np.int64))
        return codes


class EvalLoader:
    """Batches of a split in order, without augmentation; over all ranks, each image exactly once.

    Ranks may have different numbers of batches: sum up locally, and reduce after the loop.
    """

    def __init__(self, data: DeviceImages, *, rank: int = 0, world_size: int = 1) -> None:
        self.data = data
        self.num_samples = len(data)  # over all ranks
        self._batches = sequential_batches(len(data), rank, world_size, EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        """Return the number of batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            rows = slice(batch.start, batch.stop)
            yield Batch(
                images=normalize(self.data.pixels[rows], self.data.mean, self.data.std),
                target=self.data.labels[rows],
                index=torch.arange(rows.start, rows.stop, device=self.data.labels.device),
            )
