"""Images of more than 8 bits a channel as 8 bits, wherever it is known which value is white.

A 16-bit file may hold values of 8, 10, 12, 14 or 16 bits; to take all for 16 would leave most of them black. So white
is, in this order:

1. what the file says: TIFF's SMaxSampleValue, its MaxSampleValue where that is all the bits of a number, its bits a
   sample where they are fewer than 16, PNG's sBIT where no value needs more bits; a PPM's own maximum and the depth
   of JPEG 2000 where they are less than 16 bits;
2. ``data.white``;
3. 65,535 for unsigned 16 bits, if the brightest value of the image needs all 16, or all are multiples of 257, as 8 bits
   become 16 (an image that is all black is one of these).

Anything else is refused. Of colours Pillow keeps the upper 8 of 16 bits, so that white must be 65,535 there,
and black ones can't be told from dark ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from sftn_fast.data.bounds import HEADER

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FULL = 2**16 - 1
# Of TIFF: tags, and values of two of them.
BITS_PER_SAMPLE, PHOTOMETRIC, MAX_SAMPLE, SAMPLE_FORMAT, SMAX_SAMPLE = 258, 262, 281, 339, 341
WHITE_IS_0, SIGNED = 0, 2
CODESTREAM, COMPONENT = b"\xff\x4f\xff\x51", 42  # how JPEG 2000's begins, and where its first component's depth is
REMEDY = "save it with 8 bits, or say which value is white by data.white (as --data.white 4095)"


class DepthError(ValueError):
    """An image of which it isn't known how bright it is; the message says why, not which file."""


@dataclass(frozen=True)
class Depth:
    """What a file's header says of its pixels' values."""

    bits: int = 8  # of a channel, as it is stored
    white: float | None = None  # among the values that the decoder gives, if the file says it
    significant: int | None = None  # bits, by a writer that may have spread the values over all of them or not
    is_grey: bool = False  # of more than 8 bits when decoded
    is_float: bool = False
    is_signed: bool = False
    is_inverted: bool = False  # 0 is white

    @property
    def is_ordinary(self) -> bool:
        """Whether the pixels have 8 bits without a sign, or fewer."""
        return not self.is_grey and not self.is_signed and self.bits <= 8


def read_depth(image: ImageFile, file: BinaryIO) -> Depth:
    """The depth of ``image`` in ``file``, to be asked for before it is decoded."""
    is_float = image.mode == "F"
    is_grey = is_float or image.mode.startswith("I")
    known = READERS.get(image.format or "", lambda *_: {})(image, file)
    return Depth(**{"bits": 16 if is_grey else 8, "is_grey": is_grey, "is_float": is_float, **known})


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
    """The first value of a TIFF's tag; None where there is none, or none that is a number."""
    try:
        value = image.tag_v2.get(number)  # type: ignore[attr-defined]
        return float(value[0] if isinstance(value, tuple) else value)
    except Exception:  # of whatever a damaged directory gives
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
    return {"bits": top.bit_length(), "white": FULL if top < FULL else None}  # Pillow spreads the values


def _read_jpeg2000(_: ImageFile, file: BinaryIO) -> dict[str, object]:
    start = _start(file)
    place = start.find(CODESTREAM)
    if not 0 <= place < len(start) - COMPONENT:
        return {}
    bits = (start[place + COMPONENT] & 0x7F) + 1
    return {"bits": bits, "white": FULL if bits < 16 else None}  # as with PPM


def _start(file: BinaryIO) -> bytes:
    place = file.tell()
    file.seek(0)
    start = file.read(HEADER)
    file.seek(place)
    return start


READERS = {"TIFF": _read_tiff, "PNG": _read_png, "PPM": _read_ppm, "JPEG2000": _read_jpeg2000}


def to_8_bits(values: np.ndarray, depth: Depth, stated: float | None) -> np.ndarray:
    """Greys [height, width] uint8 of a grey image's ``values``, of more bits.

    Args:
        values: [height, width], of whatever type.
        depth: What the file says of them.
        stated: ``data.white``.

    Raises:
        DepthError: It is not known which value is white, or a value lies outside 0 to white.
    """
    if depth.is_float and not np.isfinite(values).all():
        raise DepthError("its pixels are floating-point numbers, some of them not finite")
    darkest, brightest = float(values.min()), float(values.max())
    if darkest < 0:
        raise DepthError(f"its pixels have a sign, and the darkest is {darkest:g}; save it with 8 bits")
    white = _white(values, brightest, depth, stated)
    if brightest > white:
        raise DepthError(f"its brightest value is {brightest:g}, beyond white, which is {white:g}; {REMEDY}")
    greys = _scaled(values, white)
    return 255 - greys if depth.is_inverted else greys


def _scaled(values: np.ndarray, white: float) -> np.ndarray:
    bits = int(white).bit_length()
    if values.dtype.kind in "iu" and white == 2**bits - 1 and bits >= 8:
        return (values >> (bits - 8)).astype(np.uint8)  # the upper 8 bits, as Pillow does with colours
    return (values * np.float32(255 / white) + np.float32(0.5)).astype(np.uint8)


def _white(values: np.ndarray, brightest: float, depth: Depth, stated: float | None) -> float:
    if depth.white:
        return depth.white
    if depth.significant and brightest < 2**depth.significant:
        return 2**depth.significant - 1
    if depth.significant or stated:
        return stated or FULL
    if depth.is_float:
        raise DepthError(f"its pixels are floating-point numbers of no stated range; {REMEDY}")
    if depth.bits > 16 or depth.is_signed:
        raise DepthError(f"its pixels have more than 16 bits, or a sign, and no stated range; {REMEDY}")
    if brightest < 2**15 and (values % 257).any():
        raise DepthError(f"the brightest of its 16-bit values is {brightest:g}, which may be any grey; {REMEDY}")
    return FULL


def check_colours(image: Image, depth: Depth, stated: float | None) -> None:
    """Judge an ``image`` of colours, or of grey and transparency, that Pillow has reduced to 8 bits.

    Raises:
        DepthError: It is not known whether the 8 bits that are left are those that matter.
    """
    if depth.is_signed:
        raise DepthError("its pixels have a sign; save it with 8 bits without one")
    if depth.bits <= 8:
        return
    white = depth.white or stated
    if white is not None and white != FULL:
        raise DepthError(f"white is {white:g}, but of its colours the upper 8 of 16 bits are kept; save it with 8 bits")
    bands = [band for name, band in zip(image.getbands(), image.split(), strict=True) if name not in ("A", "a")]
    brightest = max(int(band.getextrema()[1]) for band in bands)  # type: ignore[arg-type]
    if white is None and brightest < 128:  # also if all are black, since 8 bits of 16 would be
        limit = 256 * (brightest + 1)
        raise DepthError(
            f"its 16-bit colours are all below {limit:,}, which may be any; save it with 8 bits, or say "
            "that white is 65535 by data.white"
        )
