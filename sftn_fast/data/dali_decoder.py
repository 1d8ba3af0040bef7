"""Decoder of image files that uses DALI: entirely on the GPU if there is one, else in threads on the CPU.

DALI gets bytes and crops and draws no random numbers, so that it has no state to save. Decoding and cropping are fused:
only the visible part of a JPEG is decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, from_numpy

from sftn_fast.config import ConfigError
from sftn_fast.data.augment import resize_cut_flip
from sftn_fast.data.crops import Crop, Sample
from sftn_fast.data.decode import DecodeError, find_fault, undecodable
from sftn_fast.data.encoded_image import read_encoded
from sftn_fast.data.file_loaders import ImageFormat

AHEAD = 2  # batches read ahead, and as many decoded ahead
THREADS = "decode"  # prefix of the threads' names


GraphInputs = tuple[list[np.ndarray] | np.ndarray, ...]
"""Files, then arrays with a row for each image."""


def why_not() -> str | None:
    """Return why DALI can't be used; None if it can."""
    try:
        import_module("nvidia.dali.fn")
    except Exception as error:  # a broken installation may raise anything
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Run a pool of ``count`` threads as a context; leaving it cancels pending work and ends the threads."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Prepared:
    """A batch of files that have been read."""

    samples: Sequence[Sample]
    contents: list[np.ndarray]  # [bytes] uint8 each
    crops: list[Crop]


class DaliDecoder:
    """A :class:`~sftn_fast.data.file_loaders.Decoder` that uses DALI.

    Args:
        image_format: Format of the batches.
        workers: Number of threads.
        root: The data set's folder, for messages.
        resize: Resize and normalise in DALI too; None to do so on a GPU only. On a CPU torch is faster: its resizing
            of bytes is vectorised, DALI's is not.

    Raises:
        ConfigError: DALI is missing or broken.
    """

    name = "dali"

    def __init__(self, image_format: ImageFormat, *, workers: int, root: Path, resize: bool | None = None) -> None:
        reason = why_not()
        if reason:
            raise ConfigError(
                f"data.loader=dali needs DALI, which can't be imported ({reason}); pip install nvidia-dali-cuda130, or "
                "use data.loader=torchvision"
            )
        self.image_format, self.workers, self.root = image_format, workers, root
        self.resize = image_format.device.type == "cuda" if resize is None else resize

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """Decode each of ``batches`` to images [B, 3, size, size]."""
        # Two pools, so that resizing a decoded batch does not wait for reading the files of later ones.
        with _threads(self.workers) as readers, _threads(self.workers) as resizers:
            yield from self._images(self._prepared(readers, batches), resizers, largest)

    def _images(self, prepared: Iterator[_Prepared], resizers: ThreadPoolExecutor, largest: int) -> Iterator[Tensor]:
        scheduled: deque[_Prepared] = deque()
        pipeline = self._pipeline(self._inputs(prepared, scheduled), largest)
        while True:
            try:
                (outputs,) = pipeline.run()
            except StopIteration:
                return
            except RuntimeError as error:  # the pipeline can't be used after it
                raise self._culprit(scheduled[0], error) from error
            batch = scheduled.popleft()
            if self.resize:
                # No copy: a dynamic pipeline does not reuse memory that is still referenced.
                with self.image_format.device:
                    images = torch.from_dlpack(outputs.as_tensor())
                yield images.permute(0, 3, 1, 2) if self.image_format.channels_last else images
            else:
                yield self.image_format.finish(self._resized(resizers, outputs, batch.crops))

    def _prepared(self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[Sample]]) -> Iterator[_Prepared]:
        """Read the files of every batch, some batches ahead."""
        pending: deque[tuple[Sequence[Sample], list[Future[tuple[np.ndarray, Crop]]]]] = deque()
        for batch in batches:
            pending.append((batch, [pool.submit(self._read, sample) for sample in batch]))
            if len(pending) > AHEAD:
                yield self._await(*pending.popleft())
        while pending:
            yield self._await(*pending.popleft())

    def _await(self, samples: Sequence[Sample], futures: list[Future[tuple[np.ndarray, Crop]]]) -> _Prepared:
        results = []
        for sample, future in zip(samples, futures, strict=True):
            try:
                results.append(future.result())
            except DecodeError as error:
                raise undecodable(sample.path, self.root, error) from error
        contents, crops = zip(*results, strict=True)
        return _Prepared(samples, list(contents), list(crops))

    def _read(self, sample: Sample) -> tuple[np.ndarray, Crop]:
        encoded = read_encoded(sample.path, self.image_format.white)
        return encoded.content, sample.crop(encoded.height, encoded.width, self.image_format.size)

    def _resized(self, pool: ThreadPoolExecutor, parts: Any, crops: list[Crop]) -> Tensor:
        """Resize the decoded ``parts``, a batch of DALI's, to pixels [B, 3, size, size] uint8."""
        size = self.image_format.size
        pixels = np.empty((len(crops), 3, size, size), np.uint8)

        def fill(row: int) -> None:
            part = torch.from_dlpack(parts[row]).permute(2, 0, 1)
            pixels[row] = resize_cut_flip(part, crops[row], size)

        for _ in pool.map(fill, range(len(crops))):
            pass
        return from_numpy(pixels)

    def _inputs(self, prepared: Iterable[_Prepared], scheduled: deque[_Prepared]) -> Iterator[GraphInputs]:
        """Yield the graph's inputs for each batch, and append the batch to ``scheduled``."""
        size = self.image_format.size
        for batch in prepared:
            scheduled.append(batch)
            crops = batch.crops
            boxes = np.array([crop.box for crop in crops], np.int32)
            numbers: list[np.ndarray] = [boxes[:, :2], boxes[:, 2:]]
            if self.resize:
                resized = np.array([crop.resized for crop in crops], np.float32)
                corner = np.array([crop.corner for crop in crops], np.float32)
                place = corner / np.maximum(resized - size, 1)  # relative to the pixels left over, 0 to 1
                numbers += [resized, *place.T, np.array([crop.flipped for crop in crops], np.int32)]
            yield batch.contents, *map(np.ascontiguousarray, numbers)

    def _pipeline(self, inputs: Iterator[GraphInputs], largest: int) -> Any:
        dali: Any = import_module("nvidia.dali")
        fn: Any = import_module("nvidia.dali.fn")
        types: Any = dali.types
        wanted, on_gpu = self.image_format, self.image_format.device.type == "cuda"

        @dali.pipeline_def(
            batch_size=largest,
            num_threads=self.workers,
            device_id=(wanted.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=AHEAD,
            exec_dynamic=True,  # in older versions the default reuses the memory of earlier batches
        )
        def graph() -> Any:
            kinds = [(types.UINT8, 1), (types.INT32, 1), (types.INT32, 1)]
            if self.resize:
                kinds += [(types.FLOAT, 1), (types.FLOAT, 0), (types.FLOAT, 0), (types.INT32, 0)]
            encoded, start, shape, *rest = fn.external_source(
                source=inputs,
                num_outputs=len(kinds),
                dtype=[dtype for dtype, _ in kinds],
                ndim=[ndim for _, ndim in kinds],
            )
            images = fn.decoders.image_slice(
                encoded, start, shape, axis_names="HW", output_type=types.RGB, device="mixed" if on_gpu else "cpu"
            )
            if not self.resize:
                return images
            resized, y, x, flipped = rest
            images = fn.resize(images, size=resized, interp_type=types.INTERP_LINEAR, antialias=True)
            return fn.crop_mirror_normalize(
                images,
                crop=(wanted.size, wanted.size),
                crop_pos_y=y,
                crop_pos_x=x,
                mirror=flipped,
                mean=[255 * value for value in wanted.mean],
                std=[255 * value for value in wanted.std],
                output_layout="HWC" if wanted.channels_last else "CHW",
                dtype=types.FLOAT,
            )

        pipeline = graph()
        pipeline.build()
        return pipeline

    def _culprit(self, batch: _Prepared, error: RuntimeError) -> ConfigError:
        """Return the error for the file that DALI stopped at, which DALI may not name."""
        for sample in batch.samples:
            fault = find_fault(sample.path, self.image_format.white)
            if fault is not None:
                return undecodable(sample.path, self.root, fault)
        message = " ".join(str(error).split())
        return ConfigError(
            f"DALI can't decode {batch.samples[0].path} or one of the {len(batch.samples) - 1} files after it "
            f"({message}), but Pillow finds no fault in them; use data.loader=torchvision"
        )
