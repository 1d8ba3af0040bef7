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

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
END_OF_IMAGE = b"\xff\xd9"


@dataclass(frozen=True)
class Encoded:
    """The bytes of a JPEG, or of a PPM file with these ``pixels``; and the image's size."""

    height: int
    width: int
    content: np.ndarray  # [bytes] uint8
    pixels: np.ndarray | None = None  # [height, width, 3] uint8


def read(path: str) -> Encoded:
    """The image in ``path``.

    Raises:
        DecodeError: There is none, or it has too many pixels, both as far as its header tells; or it is no ordinary
            JPEG and can't be decoded.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DecodeError(f"{type(error).__name__}: {error}") from error
    with opened(BytesIO(content.data)) as image:
        width, height = image.size
        ordinary = _is_ordinary(image)
    # One that was cut off would be filled up with grey by some decoders.
    if ordinary and content[-2:].tobytes() == END_OF_IMAGE:
        return Encoded(height, width, content)
    pixels = np.array(decode(BytesIO(content.data)))
    height, width, _ = pixels.shape
    header = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return Encoded(height, width, np.concatenate([header, pixels.reshape(-1)]), pixels)


def _is_ordinary(image: Image) -> bool:
    transformed = image.info.get("adobe_transform", 1) != 0  # 0: the file holds RGB, which JPEGs hardly ever do
    upright = "exif" not in image.info or image.getexif().get(ORIENTATION, 1) == 1
    return image.format == "JPEG" and image.mode in ("RGB", "L") and transformed and upright
