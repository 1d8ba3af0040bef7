"""Image files to RGB pixels: what folders of images hold in practice comes out alike, the rest is refused by name.

Grey, CMYK, palette and 16-bit images become 8-bit RGB, an EXIF rotation is applied, and the format is what the content
says, whatever the file is called. Pillow does the work; it is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sftn_fast.config import ConfigError
from sftn_fast.data.folders import SKIP_LIST
from sftn_fast.data.progress import Progress

if TYPE_CHECKING:
    from PIL.Image import Image

# Formats that Pillow decodes by itself; left to choose, it would hand a file that claims to be EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
MAX_PIXELS = 64_000_000  # 192 MB decoded, and below the limit from which Pillow warns
CHUNK = 64  # files a thread reads at a time


class DecodeError(ValueError):
    """A file that holds no image that can be used; the message says why, not which file."""


def pillow() -> Any:
    """The modules ``PIL.Image`` and ``PIL.ImageOps``.

    Raises:
        ConfigError: Pillow is missing or broken.
    """
    try:
        return import_module("PIL.Image"), import_module("PIL.ImageOps")
    except Exception as error:
        raise ConfigError(
            f"image files are decoded by Pillow, which can't be imported ({error}); it comes with torchvision, the "
            'extra "vision", or by pip install pillow'
        ) from error


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[Image]:
    """Context: the image in ``file`` with its header read and nothing decoded yet.

    Raises:
        DecodeError: There is none, or it has more than ``MAX_PIXELS`` pixels; or whatever is done to it inside the
            context fails, as decoding it may.
    """
    image_module, _ = pillow()
    try:
        with image_module.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DecodeError(f"{width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded")
            yield image
    except DecodeError:
        raise
    except image_module.UnidentifiedImageError as error:  # whose message names the file once more
        raise DecodeError(f"no image of a known format: {', '.join(FORMATS)}") from error
    # A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, zlib.error.
    except Exception as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def decode(file: str | Path | BinaryIO) -> Image:
    """The image in ``file``, upright, as 8-bit RGB; of an animation the first frame.

    Transparency is dropped, as torchvision's image folders do; of 16 bits the upper 8 are kept.

    Raises:
        DecodeError: There is none, it is truncated or damaged, or it has more than ``MAX_PIXELS`` pixels, which is
            judged by its header, before anything is decoded.
    """
    _, image_ops = pillow()
    with opened(file) as image:
        return _to_rgb(image_ops.exif_transpose(image))


def undecodable(path: str | Path, root: Path, reason: object) -> ConfigError:
    """The error for a file of the data set in ``root`` that can't be decoded."""
    return ConfigError(
        f"{path} can't be decoded ({reason}); repair or remove it, or run "
        f"python -m sftn_fast.data.verify {root}, which lists all such files in {root / SKIP_LIST}, and "
        "they are left out"
    )


def _to_rgb(image: Image) -> Image:
    if image.mode == "F":
        raise DecodeError("its pixels are floating-point numbers of no stated range")
    if image.mode.startswith("I"):  # 16 bits, of which convert() would clip all above the lowest 8
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise DecodeError("its pixels have more than 16 bits")
        return pillow()[0].fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def find_fault(path: str) -> str | None:
    """Why ``path`` can't be decoded; None if it can."""
    try:
        decode(path)
    except DecodeError as error:
        return str(error)
    return None


def read_square(path: str | Path, size: int) -> np.ndarray:
    """The image in ``path``, its shorter side resized to ``size`` with antialiasing, cut to the central square.

    Returns:
        [3, size, size] uint8.

    Raises:
        DecodeError: See :func:`decode`.
    """
    image_module, image_ops = pillow()
    square = image_ops.fit(decode(path), (size, size), image_module.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def read_images(paths: Sequence[Path], size: int, *, root: Path) -> Tensor:
    """Decode many files in parallel threads, with a line of progress where it takes long.

    Args:
        paths: N files.
        size: Side of the images in pixels; see :func:`read_square`.
        root: The data set's folder, for the message.

    Returns:
        [N, 3, size, size] uint8.

    Raises:
        ConfigError: A file can't be decoded: the first such of ``paths``; or memory would not hold the images.
    """
    pillow()  # if it is missing, that is not the first file's fault
    _check_memory(len(paths), size)
    pixels = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    rows = pixels.numpy()

    def fill(first: int) -> int:
        last = min(first + CHUNK, len(paths))
        for row in range(first, last):
            try:
                rows[row] = read_square(paths[row], size)
            except DecodeError as error:
                raise undecodable(paths[row], root, error) from error
        return last

    progress = Progress(f"reading images in {root}", len(paths))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for done in pool.map(fill, range(0, len(paths), CHUNK)):
            progress.update(done)
    return pixels


def _check_memory(count: int, size: int) -> None:
    needed = 2 * count * 3 * size**2  # all images, and the choice of them that is trained on
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise ConfigError(
            f"{count:,} images of data.image_size={size} take {needed / 2**30:.1f} GiB of memory while they are read, "
            f"this machine has {available / 2**30:.1f}; choose a smaller data.image_size"
        )
