"""Conversion of images with more than 8 bits per channel to 8 bits, where the value of white is known.

A 16-bit file may hold values of 8, 10, 12, 14 or 16 bits. Reading all of them as 16 bits would make most of them
black. White is the first of these that is known:

1. The file's own statement: TIFF's SMaxSampleValue; TIFF's MaxSampleValue if it is 255, 511, 1023 and so on; TIFF's
   bits per sample if 9 to 15; PNG's sBIT if no value needs more bits; a PPM's own maximum if below 65,535; the bit
   depth of JPEG 2000 if below 16.
2. ``data.white``.
3. 65,535 for unsigned 16 bits, if the image's brightest value needs all 16 bits or if all values are multiples of 257,
   which is how 8 bits become 16 (an all-black image is one of these).

Any other image is refused. Of 16-bit colours Pillow keeps the upper 8 bits. White must therefore be 65,535 there, and
black pixels can't be told from dark ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from sftn_fast.data.file_limits import HEADER

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FULL = 2**16 - 1
# TIFF tags, and values of two of them.
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, SMAX_SAMPLE = 258, 262, 281, 339, 341
WHITE_IS_0, SIGNED = 0, 2
CODESTREAM, COMPONENT = b"\xff\x4f\xff\x51", 42  # start of JPEG 2000's codestream, offset of a component's depth
EXAMPLE = "4095"


class BitDepthError(ValueError):
    """An image of unknown brightness; the message says why, not which file.

    Args:
        reason: The message.
        white: A value of ``data.white`` that might help; None if none does.
    """

    def __init__(self, reason: str, white: str | None = None) -> None:
        super().__init__(f"{reason}; save it with 8 bits" if white else reason)
        self.white = white


@dataclass(frozen=True)
class BitDepth:
    """The range of an image's pixel values according to its file header."""

    bits: int = 8  # per channel, as stored
    white: float | None = None  # in the decoder's values; None if the file does not say
    significant: int | None = None  # significant bits; the values may or may not be scaled up to all bits
    is_grey: bool = False  # grey, more than 8 bits after decoding
    is_float: bool = False
    is_signed: bool = False
    is_inverted: bool = False  # 0 is white

    @property
    def is_ordinary(self) -> bool:
        """True if the pixels are unsigned, with 8 bits or fewer."""
        return not self.is_grey and not self.is_signed and self.bits <= 8


def read_bit_depth(image: ImageFile, file: BinaryIO) -> BitDepth:
    """Return the bit depth of ``image``, opened from ``file`` and not decoded yet."""
    is_float = image.mode == "F"
    is_grey = is_float or image.mode.startswith("I")
    known = READERS.get(image.format or "", lambda *_: {})(image, file)
    return BitDepth(**{"bits": 16 if is_grey else 8, "is_grey": is_grey, "is_float": is_float, **known})


def _read_tiff(image: ImageFile, _: BinaryIO) -> dict[str, object]:
    bits, top = int(_tag(image, BITS_PER_SAMPLE) or 1), _tag(image, MAX_SAMPLE) or 0.0
    white = _tag(image, SMAX_SAMPLE)
    if not white and top >= 255 and top.is_integer() and int(top) & (int(top) + 1) == 0:
        white = top
    if not white and 8 < bits < 16:
        white = 2**bits - 1
    return {
        "bits": bits,
        "white": white,
        "is_signed": _tag(image, SAMPLE_FORMAT) == SIGNED,
        "is_inverted": _tag(image, PHOTOMETRIC) == WHITE_IS_0,
    }


def _tag(image: ImageFile, number: int) -> float | None:
    """Return the first value of a TIFF tag; None if the tag is missing or not a number."""
    try:
        value = image.tag_v2.get(number)  # type: ignore[attr-defined]
        return float(value[0] if isinstance(value, tuple) else value)
    except Exception:  # a damaged directory may raise anything
        return None


def _read_png(image: ImageFile, file: BinaryIO) -> dict[str, object]:
    if not image.tile or ";16" not in str(image.tile[0][3]):
        return {}
    start = _start(file)
    place = start.find(b"sBIT", 0, max(0, start.find(b"IDAT")))
    significant = start[place + 4] if place >= 0 else 16
    return {"bits": 16, "significant": significant if 8 <= significant < 16 else None}


def _read_ppm(image: ImageFile, _: BinaryIO) -> dict[str, object]:
    decoder, arguments = (image.tile[0][0], image.tile[0][3]) if image.tile else ("", None)
    if decoder not in ("ppm", "ppm_plain") or not isinstance(arguments, tuple):
        return {}
    top = int(arguments[-1])
    return {"bits": top.bit_length(), "white": FULL if top < FULL else None}  # Pillow scales the values to 16 bits


def _read_jpeg2000(_: ImageFile, file: BinaryIO) -> dict[str, object]:
    start = _start(file)
    place = start.find(CODESTREAM)
    if not 0 <= place < len(start) - COMPONENT:
        return {}
    bits = (start[place + COMPONENT] & 0x7F) + 1
    return {"bits": bits, "white": FULL if bits < 16 else None}  # as for PPM


def _start(file: BinaryIO) -> bytes:
    place = file.tell()
    file.seek(0)
    start = file.read(HEADER)
    file.seek(place)
    return start


READERS = {"TIFF": _read_tiff, "PNG": _read_png, "PPM": _read_ppm, "JPEG2000": _read_jpeg2000}


def to_8_bits(values: np.ndarray, depth: BitDepth, stated: float | None) -> np.ndarray:
    """Convert the pixels of a grey image to 8 bits.

    Args:
        values: [height, width], of any type.
        depth: What the file says about them.
        stated: ``data.white``.

    Returns:
        [height, width] uint8.

    Raises:
        BitDepthError: The value of white is unknown, or a pixel is outside 0 to white.
    """
    if depth.is_float and not np.isfinite(values).all():
        raise BitDepthError("its pixels are floating-point numbers, and some are not finite")
    darkest, brightest = float(values.min()), float(values.max())
    if darkest < 0:
        raise BitDepthError(f"its pixels are signed, and the darkest is {darkest:g}; save it with 8 bits")
    white = _white(values, brightest, depth, stated)
    if brightest > white:
        raise BitDepthError(f"its brightest value is {brightest:g}, above white, which is {white:g}", EXAMPLE)
    greys = _scaled(values, white)
    return 255 - greys if depth.is_inverted else greys


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    bits = int(white).bit_length()
    if values.dtype.kind in "iu" and white == 2**bits - 1 and bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)  # the upper 8 bits, as Pillow does for colours
    return (values * np.float32(255 / white) + np.float32(0.5)).astype(np.uint8)


def _white(values: np.ndarray, brightest: float, depth: BitDepth, stated: float | None) -> float:
    if depth.white:
        return depth.white
    if depth.significant and brightest < 2**depth.significant:
        return 2**depth.significant - 1
    if depth.significant or stated:
        return stated or FULL
    if depth.is_float:
        raise BitDepthError("its pixels are floating-point numbers of unknown range", EXAMPLE)
    if depth.bits > 16 or depth.is_signed:
        raise BitDepthError("its pixels are signed or have more than 16 bits, and their range is unknown", EXAMPLE)
    if brightest < 2**15 and (values % 257).any():
        raise BitDepthError(f"the brightest of its 16-bit values is {brightest:g}, so white is unknown", EXAMPLE)
    return FULL


def check_colours(image: Image, depth: BitDepth, stated: float | None) -> None:
    """Check a colour image, or one of grey and transparency, that Pillow has reduced to 8 bits.

    Args:
        image: The decoded image.
        depth: What the file says about its pixels.
        stated: ``data.white``.

    Raises:
        BitDepthError: The 8 bits that are left may not be the significant ones.
    """
    if depth.is_signed:
        raise BitDepthError("its pixels are signed; save it with 8 bits, unsigned")
    if depth.bits <= 8:
        return
    white = depth.white or stated
    if white is not None and white != FULL:
        raise BitDepthError(
            f"white is {white:g}, but only the upper 8 of 16 bits of its colours are kept; save it with 8 bits"
        )
    bands = [band for name, band in zip(image.getbands(), image.split(), strict=True) if name not in ("A", "a")]
    brightest = max(int(band.getextrema()[1]) for band in bands)  # type: ignore[arg-type]
    if white is None and brightest < 128:  # also if all are black: the lower 8 bits may hold the image
        limit = 256 * (brightest + 1)
        raise BitDepthError(f"its 16-bit colours are all below {limit:,}, so white is unknown", str(FULL))
