"""Which way up an image is, from the one EXIF tag that says so: whatever else is odd in the EXIF does not matter."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

UPRIGHT = 1
TAG = 0x0112
FORMS = {3: "H", 4: "L", 8: "h", 9: "l"}  # of integers, by TIFF's number of their type
PREFIX = b"Exif\0\0"
ENTRY = 12  # bytes


def orientation(image: Image) -> int:
    """EXIF's orientation of ``image``, 1 to 8; 1, upright, where there is none that can be read.

    A TIFF is upright once it is loaded: Pillow turns it then.
    """
    if image.format == "TIFF":
        return UPRIGHT
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        return read_orientation(exif)
    try:  # XMP, or a profile in a PNG's text
        return _valid(image.getexif().get(TAG))
    except Exception:  # Pillow reads all of it, and raises nearly anything for what is damaged
        return UPRIGHT


def read_orientation(exif: bytes) -> int:
    """The orientation that a block of EXIF states; 1 where it states none, or can't be read as far as that."""
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
    except struct.error:  # cut off
        pass
    return UPRIGHT


def _valid(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else UPRIGHT
