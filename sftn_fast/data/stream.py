"""Batches of image files that are decoded as they are needed, for data sets that memory does not hold.

As with :mod:`sftn_fast.data.loaders`, what a step of training sees is a pure function of ``(seed, epoch, step)``: the
epoch's order is a permutation of the same key, and the part of an image that is cut out, and whether it is mirrored,
are drawn for each image and epoch by a key of their own. So a resumed run needs no state of its loader, two ranks see
what one would, and neither the number of workers nor who decodes changes what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, from_numpy, tensor

from sftn_fast.data.augment import normalize
from sftn_fast.data.folders import LabelledFiles
from sftn_fast.data.loaders import EVAL_BATCH_SIZE, Batch
from sftn_fast.data.shares import ShuffledShares, in_order
from sftn_fast.data.views import AREA, Sample


@dataclass(frozen=True)
class Form:
    """What the images are made into: squares of ``size`` pixels, normalised, on ``device``."""

    size: int
    mean: tuple[float, ...]  # of each channel, for pixel values from 0 to 1
    std: tuple[float, ...]
    device: torch.device
    channels_last: bool = False
    white: float | None = None  # data.white

    def finish(self, pixels: Tensor) -> Tensor:
        """Images [B, 3, size, size] uint8 in memory, as float32 in this form."""
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = pixels.to(self.device, non_blocking=True).contiguous(memory_format=memory_format)
        return normalize(pixels, *self._constants)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        # Kept, because a GPU is waited for when they are moved there.
        mean, std = (tensor(values, device=self.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return mean, std


class Decoder(Protocol):
    """Makes images out of files, on several processors."""

    name: str
    form: Form

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """The images [B, 3, size, size] of each of ``batches``, none of which has more than ``largest`` samples.

        Raises:
            ConfigError: A file can't be decoded; the message names it.
        """


@dataclass(frozen=True)
class FileSplit:
    """Image files and their classes; a file's place is its index."""

    paths: list[str]
    labels: Tensor  # [N] int64

    @classmethod
    def choose(cls, files: LabelledFiles, index: Tensor | None = None) -> FileSplit:
        """The files at ``index`` [M], in that order; all if None."""
        chosen = range(len(files.paths)) if index is None else index.tolist()
        return cls([str(files.paths[i]) for i in chosen], tensor([files.labels[i] for i in chosen], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, images: Tensor, index: Tensor) -> Batch:
        """``images`` with the labels of the files at ``index``, on the images' device."""
        target, index = (part.to(images.device, non_blocking=True) for part in (self.labels[index], index))
        return Batch(images, target, index)

    def relative(self, root: Path) -> list[str]:
        """The files' names below ``root``."""
        return [str(Path(path).relative_to(root)) for path in self.paths]


class FileTrainLoader(ShuffledShares):
    """Shuffled batches of random parts of the images; see :class:`~sftn_fast.data.loaders.TrainLoader`."""

    keyed = True
    augments = True

    def __init__(
        self,
        files: FileSplit,
        decoder: Decoder,
        *,
        seed: int,
        batch_size: int,
        flip: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(files), seed=seed, batch_size=batch_size, rank=rank, world_size=world_size)
        self.files, self.decoder, self.flip = files, decoder, flip

    @property
    def labels(self) -> Tensor:
        """Classes of the split [num_train] int64, in memory."""
        return self.files.labels

    def augmentation(self) -> dict[str, str | int]:
        """What is done to an image before it is trained on, for the run's fingerprint."""
        white = {} if self.decoder.form.white is None else {"white": str(self.decoder.form.white)}
        return {"loader": self.decoder.name, "crop_area": str(AREA), "flip": int(self.flip), **white}

    def unaugmented(self) -> FileEvalLoader:
        """The same images in order, as they are evaluated."""
        return FileEvalLoader(self.files, self.decoder)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of ``epoch`` from step ``start`` on, bit for bit those that a whole epoch has there.

        Raises:
            ValueError: ``start`` lies outside ``0 .. len(self)``.
            ConfigError: A file can't be decoded; with the first batch or later.
        """
        places = list(self.shares(start))
        order = self.order(epoch)
        samples = ([self._sample(epoch, index) for index in order[share].tolist()] for share in places)
        images = self.decoder(samples, self.batch_size // self.world_size)
        return (
            self.files.batch(decoded, from_numpy(order[share])) for share, decoded in zip(places, images, strict=True)
        )

    def _sample(self, epoch: int, index: int) -> Sample:
        return Sample(self.files.paths[index], (self.seed, epoch, "view", index), self.flip)


class FileEvalLoader:
    """The centre of each image of a split in order, each exactly once over all ranks."""

    def __init__(self, files: FileSplit, decoder: Decoder, *, rank: int = 0, world_size: int = 1) -> None:
        self.files, self.decoder = files, decoder
        self.num_samples = len(files)  # over all ranks
        self._batches = in_order(len(files), rank, world_size, EVAL_BATCH_SIZE)

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        samples = ([Sample(path) for path in self.files.paths[rows.start : rows.stop]] for rows in self._batches)
        images = self.decoder(samples, EVAL_BATCH_SIZE)
        for rows, decoded in zip(self._batches, images, strict=True):
            yield self.files.batch(decoded, torch.arange(rows.start, rows.stop))
