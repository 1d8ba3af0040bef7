"""An image file as a decoder is given it: its bytes if they are an ordinary JPEG, else pixels by Pillow.

Decoders agree on ordinary JPEGs. They disagree on CMYK, 16 bits, transparency, rotation by EXIF and on what is damaged;
there :mod:`sftn_fast.data.decode` is the judge for all of them, and the same files fail everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from sftn_fast.data.decode import DecodeError, decode, opened
from sftn_fast.data.orientation import UPRIGHT, orientation
from sftn_fast.data.regular import MAX_BYTES, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG = b"\xff\xd8\xff"  # what one begins with
END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Encoded:
    """The bytes of a JPEG, or of a PPM file with these ``pixels``; and the image's size."""

    height: int
    width: int
    content: np.ndarray  # [bytes] uint8
    pixels: np.ndarray | None = None  # [height, width, 3] uint8


def read(path: str, white: float | None = None) -> Encoded:
    """The image in ``path``.

    Args:
        path: A file.
        white: ``data.white``.

    Raises:
        DecodeError: There is none, or decoding it would cost too much, both as far as its header tells; or it is no
            ordinary JPEG and can't be decoded.
    """
    content = _read_jpeg(path)
    if content is None:
        pixels = np.array(decode(path, white))
    else:
        with opened(BytesIO(content.data)) as image:
            width, height = image.size
            ordinary = _is_ordinary(image)
        # One that was cut off would be filled up with grey by some decoders.
        if ordinary and content[-2:].tobytes() == END_OF_IMAGE:
            return Encoded(height, width, content)
        pixels = np.array(decode(BytesIO(content.data), white))
    height, width, _ = pixels.shape
    header = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return Encoded(height, width, np.concatenate([header, pixels.reshape(-1)]), pixels)


def _read_jpeg(path: str) -> np.ndarray | None:
    """The bytes of a file that begins as a JPEG does; None if it does not."""
    try:
        with open_regular(path, MAX_BYTES) as file:
            start = file.read(len(JPEG))
            file.seek(0)
            return np.fromfile(file, np.uint8) if start == JPEG else None
    except OSError as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _is_ordinary(image: Image) -> bool:
    transformed = image.info.get("adobe_transform", 1) != 0  # 0: the file holds RGB, which JPEGs hardly ever do
    plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    return plain and transformed and orientation(image) == UPRIGHT
