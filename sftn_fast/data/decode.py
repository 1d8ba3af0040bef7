"""Image files to RGB pixels: what folders of images hold in practice comes out alike, the rest is refused by name.

Grey, CMYK and palette images become 8-bit RGB, so do those of more bits where it is known which value is white
(:mod:`sftn_fast.data.depth`), an EXIF rotation is applied, and the format is what the content says, whatever the file
is called. Pillow does the work; it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sftn_fast.config import ConfigError
from sftn_fast.data import machine
from sftn_fast.data.bounds import BoundsError, check_file, check_header
from sftn_fast.data.depth import DepthError, check_colours, read_depth, to_8_bits
from sftn_fast.data.orientation import UPRIGHT, orientation
from sftn_fast.data.regular import MAX_BYTES, open_regular
from sftn_fast.data.skip_list import SKIP_LIST
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar
from sftn_fast.utils.text import escape

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# Formats that Pillow decodes by itself; left to choose, it would hand a file that claims to be EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000")
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


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that this build of Pillow knows."""
    image_module, _ = pillow()
    image_module.init()
    return tuple(name for name in FORMATS if name in image_module.OPEN)


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[ImageFile]:
    """Context: the image in ``file`` with its header read and nothing decoded yet.

    Raises:
        DecodeError: There is none, it is no regular file, or decoding it would cost too much (see
            :mod:`sftn_fast.data.bounds`); or whatever is done to it inside the context fails, as decoding it may.
    """
    image_module, _ = pillow()
    try:
        with open_regular(file, MAX_BYTES) if isinstance(file, (str, Path)) else nullcontext(file) as stream:
            check_file(stream)
            with image_module.open(stream, formats=_formats()) as image:
                check_header(image, stream)
                yield image
    except DecodeError:
        raise
    except (BoundsError, DepthError) as error:
        raise DecodeError(str(error)) from error
    except image_module.UnidentifiedImageError as error:  # whose message names the file once more
        raise DecodeError(f"no image of a known format: {', '.join(_formats())}") from error
    # A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, zlib.error.
    except Exception as error:
        raise DecodeError(f"{type(error).__name__}: {escape(error)}") from error


def decode(file: str | Path | BinaryIO, white: float | None = None) -> Image:
    """The image in ``file``, upright, as 8-bit RGB; of an animation or of several pages the first.

    Transparency is dropped, as torchvision's image folders do.

    Args:
        file: A path, or what was opened for reading.
        white: ``data.white``; see :mod:`sftn_fast.data.depth`.

    Raises:
        DecodeError: There is none, it is truncated or damaged, it is too large, which is judged before anything is
            decoded, or it has more than 8 bits and it is not known which value is white.
    """
    with opened(file) as image:
        depth = read_depth(image, cast(BinaryIO, image.fp))
        image.load()
        turn = _turns()[orientation(image) - UPRIGHT]
        found: Image = image
        if depth.is_grey:
            found = pillow()[0].fromarray(to_8_bits(np.asarray(image), depth, white))
        elif not depth.is_ordinary:
            check_colours(image, depth, white)
        found.info.pop("transparency", None)
        return (found if turn is None else found.transpose(turn)).convert("RGB")


@cache
def _turns() -> tuple[Any, ...]:
    """What makes an image upright, by EXIF's orientation from 1 on."""
    ways = pillow()[0].Transpose
    quarters = (ways.TRANSPOSE, ways.ROTATE_270, ways.TRANSVERSE, ways.ROTATE_90)
    return (None, ways.FLIP_LEFT_RIGHT, ways.ROTATE_180, ways.FLIP_TOP_BOTTOM, *quarters)


def undecodable(path: str | Path, root: Path, reason: object) -> ConfigError:
    """The error for a file of the data set in ``root`` that can't be decoded."""
    return ConfigError(
        f"{escape(path)} can't be decoded ({reason}); repair or remove it, or run "
        f"python -m sftn_fast.data.verify {root}, which lists all such files in {root / SKIP_LIST}, and "
        "they are left out"
    )


def find_fault(path: str, white: float | None = None) -> str | None:
    """Why ``path`` can't be decoded; None if it can."""
    try:
        decode(path, white)
    except DecodeError as error:
        return str(error)
    return None


def read_square(path: str | Path, size: int, white: float | None = None) -> np.ndarray:
    """The image in ``path``, its shorter side resized to ``size`` with antialiasing, cut to the central square.

    Returns:
        [3, size, size] uint8.

    Raises:
        DecodeError: See :func:`decode`.
    """
    image_module, image_ops = pillow()
    square = image_ops.fit(decode(path, white), (size, size), image_module.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def read_images(paths: Sequence[Path], size: int, *, root: Path, white: float | None = None) -> Tensor:
    """Decode many files in parallel threads, with a line of progress where it takes long.

    Args:
        paths: N files.
        size: Side of the images in pixels; see :func:`read_square`.
        root: The data set's folder, for the message.
        white: ``data.white``.

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
                rows[row] = read_square(paths[row], size, white)
            except DecodeError as error:
                raise undecodable(paths[row], root, error) from error
        return last

    label = f"reading images in {root}"
    progress = ProgressBar(len(paths), start=None, label=label, unit="images", line_interval=LINE_INTERVAL)
    with progress, ThreadPoolExecutor(machine.cores()) as pool:
        for done in pool.map(fill, range(0, len(paths), CHUNK)):
            progress.update(done)
    return pixels


def _check_memory(count: int, size: int) -> None:
    needed = 2 * count * 3 * size**2  # all images, and the choice of them that is trained on
    available = machine.memory()
    if available is not None and needed > available:
        raise ConfigError(
            f"{count:,} images of data.image_size={size} take {needed / 2**30:.1f} GiB of memory while they are read, "
            f"this machine has {available / 2**30:.1f}; choose a smaller data.image_size"
        )
