"""Loaders that decode image files on demand, for data sets that do not fit in memory.

As in :mod:`sftn_fast.data.loaders`, a training batch is a pure function of ``(seed, epoch, step)``. The epoch's order
is the same permutation as there. The crop and the flip of an image have a random key for each image and epoch. A
resumed run therefore needs no loader state, two ranks see the batches that one would, and neither the number of workers
nor the decoder changes the random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, from_numpy, tensor

from sftn_fast.data.augment import normalize
from sftn_fast.data.boxes import fill_boxes
from sftn_fast.data.crops import AREA, Sample
from sftn_fast.data.folders import LabelledFiles
from sftn_fast.data.loaders import EVAL_BATCH_SIZE, Batch
from sftn_fast.data.sampler import ShuffledSampler, sequential_batches
from sftn_fast.data.seeding import generator
from sftn_fast.data.views import PLAIN, View, several_views


@dataclass(frozen=True)
class ImageFormat:
    """Format of the batches: normalised square images of ``size`` pixels, on ``device``."""

    size: int
    mean: tuple[float, ...]  # per channel, for pixel values from 0 to 1
    std: tuple[float, ...]
    device: torch.device
    channels_last: bool = False
    white: float | None = None  # data.white

    def finish(self, pixels: Tensor) -> Tensor:
        """Convert pixels [B, C, size, size] uint8 in host memory to float32 images of this format."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = pixels.to(self.device, non_blocking=True).contiguous(memory_format=memory_format)
        return normalize(pixels, *self._constants)

    def hidden_value(self, view: View) -> Tensor:
        """Return what hidden parts of ``view`` look like [C, 1, 1]."""
        return view.hidden_value(*self._constants)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        # Cached, because copying them to a GPU waits for it.
        mean, std = (tensor(values, device=self.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std


class Decoder(Protocol):
    """A decoder of image files that uses several cores."""

    name: str
    image_format: ImageFormat

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """Decode each of ``batches`` to images [B, C, size, size].

        Args:
            batches: Samples of each batch.
            largest: Upper bound on the samples of a batch.

        Raises:
            ConfigError: A file can't be decoded; the message names it.
        """


@dataclass(frozen=True)
class FileSplit:
    """Image files of a split and their labels."""

    paths: list[str]
    labels: Tensor  # [N] int64

    @classmethod
    def choose(cls, files: LabelledFiles, index: Tensor | None = None) -> FileSplit:
        """Return the files at ``index`` [M], in that order; all if None."""
        chosen = range(len(files.paths)) if index is None else index.tolist()
        return cls([str(files.paths[i]) for i in chosen], tensor([files.labels[i] for i in chosen], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, images: Tensor, index: Tensor) -> Batch:
        """Return ``images`` with the labels of the files at ``index``, on the images' device."""
        target, index = (part.to(images.device, non_blocking=True) for part in (self.labels[index], index))
        return Batch(images, target, index)

    def relative(self, root: Path) -> list[str]:
        """Return the files' paths relative to ``root``."""
        return [str(Path(path).relative_to(root)) for path in self.paths]


class FileTrainLoader(ShuffledSampler):
    """Shuffled batches of random crops; see :class:`~sftn_fast.data.loaders.TrainLoader`."""

    deterministic = True
    augments = True

    def __init__(
        self,
        files: FileSplit,
        decoder: Decoder,
        *,
        seed: int,
        batch_size: int,
        flip: bool,
        view: View = PLAIN,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(files), seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        self.files, self.decoder, self.flip = files, decoder, flip
        self.views: tuple[View, ...] = (view,)

    @property
    def labels(self) -> Tensor:
        """Labels of the split [num_train] int64, in host memory."""
        return self.files.labels

    def augmentation(self) -> dict[str, str | int]:
        """Return the augmentation's settings, for the run's fingerprint."""
        white = {} if self.decoder.image_format.white is None else {"white": str(self.decoder.image_format.white)}
        settings = {**white, **self.views[0].settings()}
        return {"loader": self.decoder.name, "crop_area": str(AREA), "flip": int(self.flip), **settings}

    def unaugmented(self) -> FileEvalLoader:
        """Return a loader of the same images in order, cropped as in evaluation."""
        return FileEvalLoader(self.files, self.decoder)

    def with_views(self, views: int, *, strong: bool = False) -> FileTrainLoader:
        """See :meth:`sftn_fast.data.loaders.TrainLoader.with_views`. DALI decodes a file once for each view."""
        other = copy.copy(self)
        other.views = several_views(self.views[0], views, strong=strong)
        return other

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of ``epoch`` from step ``start`` on, bit-identical to those of the whole epoch.

        Raises:
            ValueError: ``start`` is outside ``0 .. len(self)``.
            ConfigError: A file can't be decoded; raised while iterating.
        """
        places = list(self.shares(start))
        order = self.order(epoch)
        samples = (
            [self._sample(epoch, index, number) for index in order[share].tolist() for number in range(len(self.views))]
            for share in places
        )
        images = self.decoder(samples, len(self.views) * (self.batch_size // self.world_size))
        hidden_values = [self.decoder.image_format.hidden_value(view) if view.hides else None for view in self.views]
        return (
            self.files.batch(self._finished(decoded, epoch, order[share], hidden_values), from_numpy(order[share]))
            for share, decoded in zip(places, images, strict=True)
        )

    def _sample(self, epoch: int, index: int, number: int) -> Sample:
        key = self._key(epoch, index, number)
        return Sample(self.files.paths[index], key, self.flip, self.views[number].policy)

    def _key(self, epoch: int, index: int, number: int) -> tuple[int | str, ...]:
        """Return the key of the random numbers of one view of an image; the first view has the same among others."""
        return (self.seed, epoch, "view", index, *((number,) if number else ()))

    def _finished(
        self, images: Tensor, epoch: int, index: np.ndarray, hidden_values: Sequence[Tensor | None]
    ) -> Tensor:
        """Hide parts of the decoded views [B * views, C, H, W]; return [B, C, H, W] or [B, views, C, H, W]."""
        several = images.unflatten(0, (len(index), len(self.views)))
        for number, (view, value) in enumerate(zip(self.views, hidden_values, strict=True)):
            if value is not None:
                keys = [self._key(epoch, i, number) for i in index.tolist()]
                boxes = [view.boxes(generator(*key, "box"), 1, images.shape[-1]) for key in keys]
                place = from_numpy(np.concatenate(boxes, axis=1)).to(images.device, non_blocking=True)
                several[:, number].copy_(fill_boxes(several[:, number], place, value))
        return images if len(self.views) == 1 else several


class FileEvalLoader:
    """Batches of the centres of a split's images in order; over all ranks, each image exactly once."""

    def __init__(self, files: FileSplit, decoder: Decoder, *, rank: int = 0, world_size: int = 1) -> None:
        self.files, self.decoder = files, decoder
        self.num_samples = len(files)  # over all ranks
        self._batches = sequential_batches(len(files), rank, world_size, EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        """Return the number of batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        samples = ([Sample(path) for path in self.files.paths[rows.start : rows.stop]] for rows in self._batches)
        images = self.decoder(samples, EVAL_BATCH_SIZE)
        for rows, decoded in zip(self._batches, images, strict=True):
            yield self.files.batch(decoded, torch.arange(rows.start, rows.stop))
