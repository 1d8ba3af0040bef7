"""Image orientation from its one EXIF tag; other damage in the EXIF data does not matter."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

UPRIGHT = 1
TAG = 0x0112
FORMS = {3: "H", 4: "L", 8: "h", 9: "l"}  # struct format of TIFF's integer types
PREFIX = b"Exif\0\0"
ENTRY = 12  # bytes


def orientation(image: Image) -> int:
    """Return the EXIF orientation of ``image``, 1 to 8; 1 (upright) if there is none or it can't be read.

    A TIFF counts as upright, because Pillow rotates it when it loads it.
    """
    if image.format == "TIFF":
        return UPRIGHT
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return read_orientation(exif)
    try:  # from XMP, or from a profile in a PNG's text
        return _valid(image.getexif().get(TAG))
    except Exception:  # Pillow parses all of it, and raises nearly anything if it is damaged
        return UPRIGHT


def read_orientation(exif: bytes) -> int:
    """Return the orientation in a block of EXIF data; 1 if it has none or is damaged before that tag."""
    block = exif.removeprefix(PREFIX).removeprefix(PREFIX)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return UPRIGHT
    try:
        (offset,) = struct.unpack_from(f"{order}L", block, 4)
        (count,) = struct.unpack_from(f"{order}H", block, offset)
        for number in range(count):
            place = offset + 2 + number * ENTRY
            tag, kind, values = struct.unpack_from(f"{order}HHL", block, place)
            if tag == TAG:
                inline = kind in FORMS and 1 <= values <= 4 // struct.calcsize(f"={FORMS[kind]}")
                return _valid(struct.unpack_from(f"{order}{FORMS[kind]}", block, place + 8)[0]) if inline else UPRIGHT
    except struct.error:  # truncated
        pass
    return UPRIGHT


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
