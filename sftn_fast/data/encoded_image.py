"""Input of the decoders: the bytes of an ordinary JPEG as they are, any other image as pixels from Pillow.

Decoders agree on ordinary JPEGs. They disagree on CMYK, 16 bits, transparency, EXIF rotation and damaged files. Those
go through :mod:`sftn_fast.data.decode`, whichever decoder is used, so that the same files fail everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from sftn_fast.data.decode import DecodeError, decode, opened
from sftn_fast.data.orientation import UPRIGHT, orientation
from sftn_fast.data.regular_files import MAX_BYTES, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

JPEG = b"\xff\xd8\xff"  # its first bytes
END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class EncodedImage:
    """An image as the bytes of a JPEG, or as ``pixels`` and the bytes of a PPM that holds them."""

    height: int
    width: int
    content: np.ndarray  # [bytes] uint8
    pixels: np.ndarray | None = None  # [height, width, 3] uint8


def read_encoded(path: str, white: float | None = None) -> EncodedImage:
    """Read the image file ``path``.

    Args:
        path: A file.
        white: ``data.white``.

    Raises:
        DecodeError: Its header shows that it is not an image or that decoding it would cost too much; or it is not an
            ordinary JPEG and can't be decoded.
    """
    content = _read_jpeg(path)
    if content is None:
        pixels = np.array(decode(path, white))
    else:
        with opened(BytesIO(content.data)) as image:
            width, height = image.size
            ordinary = _is_ordinary(image)
        # Some decoders would fill a truncated JPEG with grey.
        if ordinary and content[-2:].tobytes() == END_OF_IMAGE:
            return EncodedImage(height, width, content)
        pixels = np.array(decode(BytesIO(content.data), white))
    height, width, _ = pixels.shape
    header = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return EncodedImage(height, width, np.concatenate([header, pixels.reshape(-1)]), pixels)


def _read_jpeg(path: str) -> np.ndarray | None:
    """Return the bytes of a file that begins like a JPEG, else None."""
    try:
        with open_regular(path, MAX_BYTES) as file:
            start = file.read(len(JPEG))
            file.seek(0)
            return np.fromfile(file, np.uint8) if start == JPEG else None
    except OSError as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error


def _is_ordinary(image: Image) -> bool:
    transformed = image.info.get("adobe_transform", 1) != 0  # 0: RGB inside, which is rare
    plain = image.format == "JPEG" and image.mode in ("RGB", "L")
    return plain and transformed and orientation(image) == UPRIGHT
