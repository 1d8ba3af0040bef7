"""Decoding of image files to 8-bit RGB; files that can't be decoded are refused by name.

Grey, CMYK and palette images become RGB. So do images of more bits if their white is known (see
:mod:`sftn_fast.data.bit_depth`). An EXIF rotation is applied. The content decides the format, not the file's name.
Pillow does the work; it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from sftn_fast.config import ConfigError
from sftn_fast.data import resources
from sftn_fast.data.bit_depth import BitDepthError, check_colours, read_bit_depth, to_8_bits
from sftn_fast.data.file_limits import FileLimitError, check_file, check_header
from sftn_fast.data.grey import to_grey
from sftn_fast.data.orientation import UPRIGHT, orientation
from sftn_fast.data.regular_files import MAX_BYTES, open_regular
from sftn_fast.data.skip_list import SKIP_LIST
from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar
from sftn_fast.utils.text import escape

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose
    from PIL.ImageFile import ImageFile

# Formats that Pillow decodes itself. Given the choice, it would pass a file that claims to be EPS to Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "TIFF", "GIF", "AVIF", "JPEG2000")
CHUNK = 64  # files per task of a reader thread


class DecodeError(ValueError):
    """A file without a usable image; the message says why, not which file.

    Args:
        reason: What is wrong.
        white: A value of ``data.white`` that might help; None if none does.
    """

    def __init__(self, reason: str, white: str | None = None) -> None:
        super().__init__(reason)
        self.white = white

    def __str__(self) -> str:
        return self.advise("--data.white")

    def advise(self, option: str) -> str:
        """Return the message for a program whose ``option`` takes the value of white."""
        advice = f", or give the value of white (for example {option} {self.white})" if self.white else ""
        return f"{self.args[0]}{advice}"


def pillow() -> tuple[ModuleType, ModuleType]:
    """Return the modules ``PIL.Image`` and ``PIL.ImageOps``.

    Raises:
        ConfigError: Pillow is missing or broken.
    """
    try:
        return import_module("PIL.Image"), import_module("PIL.ImageOps")
    except Exception as error:
        raise ConfigError(
            f"image files need Pillow, which can't be imported ({error}); pip install pillow, or the extra "
            '"vision", which includes it'
        ) from error


@cache
def _formats() -> tuple[str, ...]:
    """Return those of ``FORMATS`` that this build of Pillow supports."""
    image_module, _ = pillow()
    image_module.init()
    return tuple(name for name in FORMATS if name in image_module.OPEN)


@contextmanager
def opened(file: str | Path | BinaryIO) -> Iterator[ImageFile]:
    """Open the image in ``file`` as a context; its header is read and nothing is decoded yet.

    Raises:
        DecodeError: ``file`` is not an image or not a regular file, or decoding it would cost too much (see
            :mod:`sftn_fast.data.file_limits`). Any error inside the context, such as one of decoding, becomes a
            DecodeError as well.
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
    except FileLimitError as error:
        raise DecodeError(str(error)) from error
    except BitDepthError as error:
        raise DecodeError(str(error), error.white) from error
    except image_module.UnidentifiedImageError as error:  # its message repeats the file's name
        raise DecodeError(f"no image of a known format: {', '.join(_formats())}") from error
    # A damaged file makes Pillow raise nearly anything: OSError, SyntaxError, ValueError, struct.error, zlib.error.
    except Exception as error:
        raise DecodeError(f"{type(error).__name__}: {escape(error)}") from error


def decode(file: str | Path | BinaryIO, white: float | None = None) -> Image:
    """Decode the image in ``file`` to upright 8-bit RGB: the first frame of an animation, the first of several pages.

    Transparency is dropped, as in torchvision's image folders.

    Args:
        file: A path, or a file opened for reading.
        white: ``data.white``; see :mod:`sftn_fast.data.bit_depth`.

    Raises:
        DecodeError: The file is not an image, or is truncated or damaged; it is too large, which is checked before
            anything is decoded; or it has more than 8 bits and the value of white is unknown.
    """
    with opened(file) as image:
        depth = read_bit_depth(image, cast(BinaryIO, image.fp))
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
def _turns() -> tuple[Transpose | None, ...]:
    """Return the transposition that makes an image upright, for each EXIF orientation from 1 to 8."""
    ways = pillow()[0].Transpose
    quarters = (ways.TRANSPOSE, ways.ROTATE_270, ways.TRANSVERSE, ways.ROTATE_90)
    return (None, ways.FLIP_LEFT_RIGHT, ways.ROTATE_180, ways.FLIP_TOP_BOTTOM, *quarters)


def undecodable(path: str | Path, root: Path, reason: object) -> ConfigError:
    """Return the error for a file of the data set in ``root`` that can't be decoded."""
    return ConfigError(
        f"{escape(path)} can't be decoded ({reason}); repair or remove it, or run "
        f"python -m sftn_fast.data.verify {root} to list all such files in {root / SKIP_LIST}, which training skips"
    )


def find_fault(path: str, white: float | None = None, option: str = "--data.white") -> str | None:
    """Return why ``path`` can't be decoded; None if it can. ``option`` is what the program calls ``white``."""
    try:
        decode(path, white)
    except DecodeError as error:
        return error.advise(option)
    return None


def read_square(path: str | Path, size: int, white: float | None = None) -> np.ndarray:
    """Decode ``path``, resize the shorter side to ``size`` with antialiasing, and cut out the central square.

    Returns:
        [3, size, size] uint8.

    Raises:
        DecodeError: See :func:`decode`.
    """
    image_module, image_ops = pillow()
    square = image_ops.fit(decode(path, white), (size, size), image_module.Resampling.BILINEAR)
    return np.asarray(square).transpose(2, 0, 1)


def read_images(
    paths: Sequence[Path], size: int, *, root: Path, white: float | None = None, grey: bool = False
) -> Tensor:
    """Decode many files in parallel threads, and print progress if it takes long.

    Args:
        paths: N files.
        size: Side of the images in pixels; see :func:`read_square`.
        root: The data set's folder, for messages.
        white: ``data.white``.
        grey: ``data.grey``.

    Returns:
        [N, 3, size, size] uint8; one channel with ``grey``.

    Raises:
        ConfigError: A file can't be decoded (the first one in ``paths`` is named), or the images do not fit in memory.
    """
    pillow()  # or the error would blame the first file
    channels = 1 if grey else 3
    _check_memory(len(paths), channels, size)
    pixels = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    rows = pixels.numpy()

    def fill(first: int) -> int:
        last = min(first + CHUNK, len(paths))
        for row in range(first, last):
            try:
                square = read_square(paths[row], size, white)
                rows[row] = to_grey(square) if grey else square
            except DecodeError as error:
                raise undecodable(paths[row], root, error) from error
        return last

    label = f"reading images in {root}"
    progress = ProgressBar(len(paths), start=None, label=label, unit="images", line_interval=LINE_INTERVAL)
    with progress, ThreadPoolExecutor(resources.cores()) as pool:
        for done in pool.map(fill, range(0, len(paths), CHUNK)):
            progress.update(done)
    return pixels


def _check_memory(count: int, channels: int, size: int) -> None:
    needed = 2 * count * channels * size**2  # all images, and a copy of those that are trained on
    available = resources.memory()
    if available is not None and needed > available:
        raise ConfigError(
            f"{count:,} images of data.image_size={size} need {needed / 2**30:.1f} GiB of memory while they are read, "
            f"but this machine has {available / 2**30:.1f}; choose a smaller data.image_size"
        )
