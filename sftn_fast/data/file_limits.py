"""Limits on the time and memory that decoding an image file may take, checked before a decoder opens it.

The cost of decoding should grow with the file's bytes and the image's pixels. Files that break this rule are refused:
JPEGs of thousands of scans, TIFFs with huge directories, GIFs and PPMs with endless comments, and large images in
almost no bytes.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 64_000_000  # 192 MB decoded, and below the limit from which Pillow warns
UNBACKED_PIXELS = 16_000_000  # larger images must have at least one byte for each PIXELS_A_BYTE pixels
PIXELS_A_BYTE = 10_000  # about the ratio of a blank page in fax compression
SLOW_PIXELS = 4_000_000  # of the kinds of PPM that Pillow decodes in Python

MAX_SCANS = 100  # of a JPEG; a progressive one has about 10
MAX_PASSES = 10 * MAX_PIXELS  # scans times pixels, of a JPEG
HEADER = 64 * 1024  # bytes within which a PPM's header must end
MAX_COMMENTS = 100  # in a text PPM
MAX_BLOCKS = 65_536  # before a GIF's first image
MAX_SEGMENTS = 10_000  # before a JPEG's first scan, or a PNG's first pixels
MAX_TAGS, MAX_TAG_BYTES, MAX_TAG_VALUES = 4096, 16 * 2**20, 200_000  # of a TIFF's directory

TIFF_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
STANDALONE = {0x01, *range(0xD0, 0xD8)}  # JPEG markers without a segment


class FileLimitError(ValueError):
    """An image file that would take too much time or memory to decode; the message says why, not which file."""


def check_file(file: BinaryIO) -> None:
    """Check the structure of ``file``, which is at its beginning and stays there.

    Raises:
        FileLimitError: Decoding it would take time or memory out of proportion.
    """
    start = file.read(16)
    for signature, check in CHECKS.items():
        if start.startswith(signature):
            file.seek(0)
            with suppress(struct.error, IndexError):  # truncated, which the decoder will report
                check(file)
    file.seek(0)


def check_header(image: ImageFile, file: BinaryIO) -> None:
    """Check the size that the header of ``image``, read from ``file``, claims; nothing is decoded.

    Raises:
        FileLimitError: It has too many pixels, or more than its bytes can hold.
    """
    width, height = image.size
    pixels, place = width * height, file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    if pixels > MAX_PIXELS:
        raise FileLimitError(f"{width} x {height} pixels, more than the {MAX_PIXELS:,} that are decoded")
    if pixels > UNBACKED_PIXELS and pixels > PIXELS_A_BYTE * size:
        raise FileLimitError(
            f"{width} x {height} pixels in a file of {size:,} bytes, too few for an image of that size"
        )
    decoder = image.tile[0][0] if getattr(image, "tile", None) else ""
    if decoder in ("ppm", "ppm_plain") and pixels > SLOW_PIXELS:
        raise FileLimitError(f"{width} x {height} pixels in a kind of PPM that takes minutes to decode; save it as PNG")
    if image.format in ("JPEG", "MPO"):
        _check_scans(file, pixels, place)


def _check_scans(file: BinaryIO, pixels: int, place: int) -> None:
    file.seek(0)
    scans = sum(block.count(b"\xff\xda") for block in iter(lambda: file.read(2**20), b""))
    file.seek(place)
    if scans > MAX_SCANS or scans * pixels > MAX_PASSES:
        raise FileLimitError(f"{scans:,} scans of {pixels:,} pixels each; save it again as an ordinary JPEG")


def _check_jpeg(file: BinaryIO) -> None:
    file.seek(2)
    for _ in range(MAX_SEGMENTS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] == 0xDA:
            return
        if marker[1] == 0xFF:  # padding
            file.seek(-1, io.SEEK_CUR)
        elif marker[1] not in STANDALONE:
            (length,) = struct.unpack(">H", file.read(2))
            file.seek(max(0, length - 2), io.SEEK_CUR)
    raise FileLimitError(f"more than {MAX_SEGMENTS:,} segments before its pixels")


def _check_png(file: BinaryIO) -> None:
    file.seek(8)
    for _ in range(MAX_SEGMENTS):
        length, kind = struct.unpack(">L4s", file.read(8))
        if kind == b"IDAT":
            return
        file.seek(length + 4, io.SEEK_CUR)
    raise FileLimitError(f"more than {MAX_SEGMENTS:,} chunks before its pixels")


def _check_gif(file: BinaryIO) -> None:
    flags = file.read(13)[10]
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
    in_extension = False
    for _ in range(MAX_BLOCKS):
        first = file.read(1)
        if in_extension:
            file.seek(first[0], io.SEEK_CUR)  # a block; an empty one is the last
            in_extension = first[0] > 0
        elif first == b"!":
            file.seek(1, io.SEEK_CUR)  # its label
            in_extension = True
        elif first in (b",", b";", b""):
            return
    raise FileLimitError(f"more than {MAX_BLOCKS:,} blocks before its pixels")


def _check_ppm(file: BinaryIO) -> None:
    start = file.read(HEADER)
    fields = re.sub(rb"#[^\r\n]*", b"", start).split()
    wanted = 3 if start[:2] in (b"P1", b"P4") else 4  # kind, width, height, brightest value
    if len(start) == HEADER and len(fields) < wanted:
        raise FileLimitError(f"a header of more than {HEADER:,} bytes")
    if start[:2] in (b"P1", b"P2", b"P3"):
        comments = start.count(b"#") + sum(block.count(b"#") for block in iter(lambda: file.read(2**20), b""))
        if comments > MAX_COMMENTS:
            raise FileLimitError(f"{comments:,} comments, more than the {MAX_COMMENTS} that are read")


def _check_tiff(file: BinaryIO) -> None:
    start = file.read(16)
    order, big = "<" if start[:1] == b"I" else ">", 43 in start[2:4]
    count_form, entry_form = ("Q", "HHQ8x") if big else ("H", "HHL4x")
    (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", start, 8 if big else 4)
    if offset >= 2**63:
        raise FileLimitError("a directory outside the file")
    length = file.seek(0, io.SEEK_END)
    file.seek(offset)
    (count,) = struct.unpack(f"{order}{count_form}", file.read(struct.calcsize(f"{order}{count_form}")))
    if count > MAX_TAGS:
        raise FileLimitError(f"a directory of {count:,} entries, more than the {MAX_TAGS:,} that are read")
    total = numbers = 0
    for _ in range(count):
        _, kind, values = struct.unpack(f"{order}{entry_form}", file.read(struct.calcsize(f"{order}{entry_form}")))
        size = TIFF_TYPES.get(kind, 0) * values
        if size <= length:  # larger ones are not read
            total += size
            numbers += values if TIFF_TYPES.get(kind, 1) > 1 else 0
    if total > MAX_TAG_BYTES or numbers > MAX_TAG_VALUES:
        raise FileLimitError(f"a directory of {total:,} bytes and {numbers:,} numbers")


CHECKS = {
    b"\xff\xd8\xff": _check_jpeg,
    b"\x89PNG\r\n\x1a\n": _check_png,
    b"GIF8": _check_gif,
    b"II*\0": _check_tiff,
    b"MM\0*": _check_tiff,
    b"II+\0": _check_tiff,
    b"MM\0+": _check_tiff,
    **{b"P" + kind: _check_ppm for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"F", b"f", b"y")},
}
