"""Decoder of image files that uses torchvision in the workers of a ``torch.utils.data.DataLoader``."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, from_numpy
from torch.utils.data import DataLoader, Dataset

from sftn_fast.config import ConfigError
from sftn_fast.data import decoder_processes
from sftn_fast.data.augment import resize_cut_flip
from sftn_fast.data.crops import Sample
from sftn_fast.data.decode import DecodeError, decode, undecodable
from sftn_fast.data.encoded_image import EncodedImage, read_encoded
from sftn_fast.data.file_loaders import ImageFormat
from sftn_fast.data.grey import to_grey
from sftn_fast.data.source import require

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Signals that stop a run; Windows has no SIGUSR1."""
AHEAD = 2
"""Batches that each worker prepares."""

T = TypeVar("T")


class TorchvisionDecoder:
    """A :class:`~sftn_fast.data.file_loaders.Decoder` that uses torchvision.

    Workers have no state: they receive files and crops and return pixels. They are forked from a server without
    threads, because locks that a thread of this process holds would stay locked in them. They exit when they are no
    longer needed or when this process dies, and ignore the signals that stop a run.

    Args:
        image_format: Format of the batches.
        workers: Number of processes.
        root: The data set's folder, for messages.

    Raises:
        ConfigError: torchvision is missing or broken; while decoding, also if a worker dies.
    """

    name = "torchvision"

    def __init__(self, image_format: ImageFormat, *, workers: int, root: Path) -> None:
        require("torchvision.io", "torchvision", "data.loader=torchvision")
        self.image_format, self.workers, self.root = image_format, workers, root

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """Decode each of ``batches`` to images [B, C, size, size]."""
        loader = DataLoader(
            _Files(self.image_format),
            batch_sampler=batches,  # type: ignore[arg-type]  # a worker gets a whole batch
            num_workers=self.workers,
            collate_fn=_identity,
            multiprocessing_context=decoder_processes.start_context([__name__, "torchvision.io"]),
            worker_init_fn=partial(_prepare_worker, decoder_processes.scratch_folder()),
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # the default one is the run's state, and would be advanced
            pin_memory=self.image_format.device.type == "cuda",
        )
        for pixels in _until_a_worker_dies(loader):
            if not isinstance(pixels, Tensor):
                path, reason = pixels
                raise undecodable(path, self.root, reason)
            yield self.image_format.finish(pixels)


class _Files(Dataset[Tensor]):
    """Files decoded a batch at a time, so that a worker sends one tensor per batch."""

    def __init__(self, image_format: ImageFormat) -> None:
        # Not the format itself, whose device a worker must not touch.
        self.size, self.white, self.channels = image_format.size, image_format.white, len(image_format.mean)

    def __getitems__(self, samples: Sequence[Sample]) -> Tensor | tuple[str, str]:
        """Return pixels [B, channels, size, size] uint8; or a file that can't be decoded, and the reason."""
        pixels = np.empty((len(samples), self.channels, self.size, self.size), np.uint8)
        image, path = torch.empty(0), ""
        for row, sample in zip(pixels, samples, strict=True):
            try:
                if sample.path != path:  # else another view of the same image
                    image, path = self._decode(read_encoded(sample.path, self.white), sample.path), sample.path
                crop = sample.crop(image.shape[1], image.shape[2], self.size)
                top, left, height, width = crop.box
                square = resize_cut_flip(image[:, top : top + height, left : left + width], crop, self.size)
                row[:] = to_grey(square) if self.channels == 1 else square
                if sample.policy:
                    row[:] = sample.change(from_numpy(row))
            except DecodeError as error:
                return sample.path, str(error)
        return from_numpy(pixels)

    def _decode(self, encoded: EncodedImage, path: str) -> Tensor:
        """Decode the whole image: [3, height, width] uint8."""
        if encoded.pixels is not None:
            return from_numpy(encoded.pixels).permute(2, 0, 1)
        import torchvision.io as io

        try:
            return io.decode_jpeg(from_numpy(encoded.content), io.ImageReadMode.RGB)
        except (RuntimeError, AttributeError):
            # Pillow decides what is valid, and tolerates more; and torchvision has announced to drop its decoders.
            return from_numpy(np.array(decode(path, self.white))).permute(2, 0, 1)


def _until_a_worker_dies(loader: Iterable[T]) -> Iterator[T]:
    """Iterate over ``loader``; turn the death of a worker into an error that tells the user what to do."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # OSError and EOFError: the worker died while it was sending a tensor.
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught "):  # an exception inside a live worker is a bug of ours
                raise
            raise ConfigError(
                "a process that decodes images died: a decoder crashed, or memory or shared memory (/dev/shm) ran out; "
                f"try fewer data.workers ({type(error).__name__}: {error})"
            ) from error
        yield batch


def _identity(batch: T) -> T:
    return batch


def _prepare_worker(scratch: str, worker: int) -> None:
    """Ignore signals, and exit with the training process.

    A signal goes to all processes of a terminal or job. The training process handles it, and needs data until then.
    torch's workers watch their parent, but that is the fork server, which they keep alive.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    decoder_processes.exit_with_parent(scratch)
