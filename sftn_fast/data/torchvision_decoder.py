"""Image files decoded by torchvision in the worker processes of a ``torch.utils.data.DataLoader``."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy
from torch.utils.data import DataLoader, Dataset

from sftn_fast.config import ConfigError
from sftn_fast.data import children
from sftn_fast.data.augment import resize_cut_flip
from sftn_fast.data.decode import DecodeError, decode, undecodable
from sftn_fast.data.encoded import Encoded, read
from sftn_fast.data.source import require
from sftn_fast.data.stream import Form
from sftn_fast.data.views import Sample

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AHEAD = 2  # batches that each worker prepares


class TorchvisionDecoder:
    """See :class:`~sftn_fast.data.stream.Decoder`.

    Workers hold no state: they are sent files and views, and send back pixels. They are forked from a server that has
    no threads, not from this process, whose own would leave them locks that nobody opens; they leave when they are no
    longer needed, when this process dies, and not at the signals by which a run is told to stop.

    Raises:
        ConfigError: torchvision is missing or broken; while it decodes, also where a worker died.
    """

    name = "torchvision"

    def __init__(self, form: Form, *, workers: int, root: Path) -> None:
        require("torchvision.io", "torchvision", "data.loader=torchvision")
        self.form, self.workers, self.root = form, workers, root

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """The images [B, 3, size, size] of each of ``batches``."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "torchvision.io"])
        loader = DataLoader(
            _Files(self.form.size, self.form.white),
            batch_sampler=batches,  # type: ignore[arg-type]  # each batch goes to a worker as it is
            num_workers=self.workers,
            collate_fn=_as_it_is,
            multiprocessing_context=context,
            worker_init_fn=partial(_begin_work, children.scratch_folder()),
            prefetch_factor=AHEAD,
            generator=torch.Generator(),  # else it would draw a seed for its workers from torch's own, a run's state
            pin_memory=self.form.device.type == "cuda",
        )
        for pixels in _until_a_worker_dies(loader):
            if not isinstance(pixels, Tensor):
                path, reason = pixels
                raise undecodable(path, self.root, reason)
            yield self.form.finish(pixels)


class _Files(Dataset[Tensor]):
    """Decodes a batch at a time, so that what a worker sends is one tensor."""

    def __init__(self, size: int, white: float | None) -> None:
        self.size, self.white = size, white

    def __getitems__(self, samples: Sequence[Sample]) -> Tensor | tuple[str, str]:
        """Pixels [B, 3, size, size] uint8; or a file that can't be decoded, and why."""
        pixels = np.empty((len(samples), 3, self.size, self.size), np.uint8)
        for row, sample in zip(pixels, samples, strict=True):
            try:
                encoded = read(sample.path, self.white)
                view = sample.view(encoded.height, encoded.width, self.size)
                top, left, height, width = view.box
                image = self._decode(encoded, sample.path)
                row[:] = resize_cut_flip(image[:, top : top + height, left : left + width], view, self.size)
            except DecodeError as error:
                return sample.path, str(error)
        return from_numpy(pixels)

    def _decode(self, encoded: Encoded, path: str) -> Tensor:
        """All of the image, [3, height, width] uint8."""
        if encoded.pixels is not None:
            return from_numpy(encoded.pixels).permute(2, 0, 1)
        import torchvision.io as io

        try:
            return io.decode_jpeg(from_numpy(encoded.content), io.ImageReadMode.RGB)
        except (RuntimeError, AttributeError):
            # Pillow forgives more, and is the judge; and torchvision has announced that its decoders will go.
            return from_numpy(np.array(decode(path, self.white))).permute(2, 0, 1)


def _until_a_worker_dies(loader: Iterable[Any]) -> Iterator[Any]:
    """What ``loader`` gives; the death of one of its processes, which a user can do something about, in one line."""
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # The others where it dies on the way to hand over a tensor.
        except (RuntimeError, OSError, EOFError) as error:
            if str(error).startswith("Caught "):  # by a worker, which lives: an error of our own
                raise
            raise ConfigError(
                "a process that decodes images died, of a decoder's crash or for want of memory, of which shared "
                f"memory (/dev/shm) may be short too: try fewer data.workers ({type(error).__name__}: {error})"
            ) from error
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin_work(scratch: str, worker: int) -> None:
    """Outlive signals, but not the process that trains.

    A signal goes to a whole terminal or job: that process answers it, and needs its data until then. torch's workers
    watch their parent, which is the server that all are forked from, and which they keep alive.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    children.leave_with_parent(scratch)
