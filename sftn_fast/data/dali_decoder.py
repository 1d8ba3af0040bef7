"""Image files decoded by DALI: on a GPU all of it there, elsewhere by its threads on the CPU.

DALI is given bytes and views, and draws nothing itself; so there is no state of it to save. Decoder and cut are fused:
of a JPEG only the part that is seen is decoded.
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
from sftn_fast.data.decode import DecodeError, find_fault, undecodable
from sftn_fast.data.encoded import read
from sftn_fast.data.stream import Form
from sftn_fast.data.views import Sample, View

AHEAD = 2  # batches that are read, and as many that are decoded, before they are asked for
THREADS = "decode"  # what their names begin with


def why_not() -> str | None:
    """Why DALI can't be used; None if it can."""
    try:
        import_module("nvidia.dali.fn")
    except Exception as error:  # broken, in whatever way
        return f"{type(error).__name__}: {error}"
    return None


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that are gone when the context is left, and what they were still to do is forgotten."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Prepared:
    """A batch whose files were read."""

    samples: Sequence[Sample]
    contents: list[np.ndarray]  # [bytes] uint8 each
    views: list[View]


class DaliDecoder:
    """See :class:`~sftn_fast.data.stream.Decoder`.

    Args:
        form: What the images are made into.
        workers: Threads.
        root: The data set's folder, for messages.
        resize: Resize and normalise in DALI too; None for where that is faster, on a GPU. On a CPU torch's resizing
            of bytes is vectorised and DALI's is not.

    Raises:
        ConfigError: DALI is missing or broken.
    """

    name = "dali"

    def __init__(self, form: Form, *, workers: int, root: Path, resize: bool | None = None) -> None:
        reason = why_not()
        if reason:
            raise ConfigError(
                f"data.loader=dali needs DALI, which can't be imported ({reason}); pip install nvidia-dali-cuda130, or "
                "use data.loader=torchvision"
            )
        self.form, self.workers, self.root = form, workers, root
        self.resize = form.device.type == "cuda" if resize is None else resize

    def __call__(self, batches: Iterable[Sequence[Sample]], largest: int) -> Iterator[Tensor]:
        """The images [B, 3, size, size] of each of ``batches``."""
        # Two pools, so that a batch that is there does not wait for files that are read for later ones.
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
            except RuntimeError as error:  # it can't be gone on with
                raise self._culprit(scheduled[0], error) from error
            batch = scheduled.popleft()
            if self.resize:
                # Without a copy: a dynamic pipeline leaves what is in use alone.
                with self.form.device:
                    images = torch.from_dlpack(outputs.as_tensor())
                yield images.permute(0, 3, 1, 2) if self.form.channels_last else images
            else:
                yield self.form.finish(self._resized(resizers, outputs, batch.views))

    def _prepared(self, pool: ThreadPoolExecutor, batches: Iterable[Sequence[Sample]]) -> Iterator[_Prepared]:
        """Every batch with its files read, some batches ahead."""
        pending: deque[tuple[Sequence[Sample], list[Future[tuple[np.ndarray, View]]]]] = deque()
        for batch in batches:
            pending.append((batch, [pool.submit(self._read, sample) for sample in batch]))
            if len(pending) > AHEAD:
                yield self._await(*pending.popleft())
        while pending:
            yield self._await(*pending.popleft())

    def _await(self, samples: Sequence[Sample], futures: list[Future[tuple[np.ndarray, View]]]) -> _Prepared:
        results = []
        for sample, future in zip(samples, futures, strict=True):
            try:
                results.append(future.result())
            except DecodeError as error:
                raise undecodable(sample.path, self.root, error) from error
        contents, views = zip(*results, strict=True)
        return _Prepared(samples, list(contents), list(views))

    def _read(self, sample: Sample) -> tuple[np.ndarray, View]:
        encoded = read(sample.path, self.form.white)
        return encoded.content, sample.view(encoded.height, encoded.width, self.form.size)

    def _resized(self, pool: ThreadPoolExecutor, parts: Any, views: list[View]) -> Tensor:
        """Pixels [B, 3, size, size] uint8 of the decoded parts."""
        size = self.form.size
        pixels = np.empty((len(views), 3, size, size), np.uint8)

        def fill(row: int) -> None:
            part = torch.from_dlpack(parts[row]).permute(2, 0, 1)
            pixels[row] = resize_cut_flip(part, views[row], size)

        for _ in pool.map(fill, range(len(views))):
            pass
        return from_numpy(pixels)

    def _inputs(self, prepared: Iterable[_Prepared], scheduled: deque[_Prepared]) -> Iterator[tuple[Any, ...]]:
        """What the graph is given of each batch, which is also appended to ``scheduled``."""
        size = self.form.size
        for batch in prepared:
            scheduled.append(batch)
            views = batch.views
            boxes = np.array([view.box for view in views], np.int32)
            numbers: list[np.ndarray] = [boxes[:, :2], boxes[:, 2:]]
            if self.resize:
                resized = np.array([view.resized for view in views], np.float32)
                corner = np.array([view.corner for view in views], np.float32)
                place = corner / np.maximum(resized - size, 1)  # of what the cut leaves over, 0 to 1
                numbers += [resized, *place.T, np.array([view.flipped for view in views], np.int32)]
            yield batch.contents, *map(np.ascontiguousarray, numbers)

    def _pipeline(self, inputs: Iterator[tuple[Any, ...]], largest: int) -> Any:
        dali: Any = import_module("nvidia.dali")
        fn: Any = import_module("nvidia.dali.fn")
        types: Any = dali.types
        form, on_gpu = self.form, self.form.device.type == "cuda"

        @dali.pipeline_def(
            batch_size=largest,
            num_threads=self.workers,
            device_id=(form.device.index or 0) if on_gpu else None,
            prefetch_queue_depth=AHEAD,
            exec_dynamic=True,  # lest the default of an older DALI reuse the memory of a batch that it gave
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
                crop=(form.size, form.size),
                crop_pos_y=y,
                crop_pos_x=x,
                mirror=flipped,
                mean=[255 * value for value in form.mean],
                std=[255 * value for value in form.std],
                output_layout="HWC" if form.channels_last else "CHW",
                dtype=types.FLOAT,
            )

        pipeline = graph()
        pipeline.build()
        return pipeline

    def _culprit(self, batch: _Prepared, error: RuntimeError) -> ConfigError:
        """The file that DALI stopped at, which it may not name."""
        for sample in batch.samples:
            fault = find_fault(sample.path, self.form.white)
            if fault is not None:
                return undecodable(sample.path, self.root, fault)
        message = " ".join(str(error).split())
        return ConfigError(
            f"DALI can't decode one of {batch.samples[0].path} and the {len(batch.samples) - 1} files after it "
            f"({message}), in which Pillow finds no fault; use data.loader=torchvision"
        )
