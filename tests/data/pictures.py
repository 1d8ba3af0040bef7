"""Small image files: coloured ones that are easy to tell apart, and damaged ones."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (128, 128, 128)}


def draw(colour="red", size=(12, 12)):
    return Image.new("RGB", size, COLOURS.get(colour, colour))


def noise(size=(12, 12), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8))


def write(path, image=None, **options):
    """Write an image in the format of its extension, unless another is given; create its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (draw() if image is None else image).save(path, **options)
    return path


def png(width, height, *, bits, colour_type, raw, extra=()):
    """Build a PNG from unfiltered rows, for variants that Pillow can't write; ``extra`` chunks precede the rows."""
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        *extra,
        (b"IDAT", zlib.compress(filtered)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(width, height, raw, tags, order="<"):
    """Build an uncompressed grey TIFF of one strip, for variants that Pillow can't write; ``tags`` have type short."""
    entries = {256: width, 257: height, 258: 16, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(raw)} | tags
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    rows = [struct.pack(f"{order}HHLHH", tag, 3, 1, value, 0) for tag, value in sorted(entries.items())]
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HLH", 42, 8, len(rows))
    return head + b"".join(rows) + bytes(4) + raw


@cache
def bomb(side):
    """Build a square black PNG of one bit per pixel: small as a file, large once decoded."""
    return png(side, side, bits=1, colour_type=0, raw=bytes(side * -(-side // 8)))


@cache
def encoded(name):
    """Return an image of noise in the format ``name``."""
    file = io.BytesIO()
    noise((64, 64)).save(file, name)
    return file.getvalue()


def damaged(path, kind):
    """Write a file to ``path`` that has an image's name and can't be decoded."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link to nowhere":
        path.symlink_to(path.parent / "gone")
        return path
    good = {name: encoded(name) for name in ("JPEG", "PNG")}
    middle = len(good["PNG"]) // 2
    contents = {
        "empty": b"",
        "text": b"<html>404 not found</html>\n" * 20,
        "truncated jpg": good["JPEG"][: len(good["JPEG"]) // 2],
        "truncated png": good["PNG"][:middle],
        "header only": good["JPEG"][:20],
        "one bit of a png": good["PNG"][:middle] + bytes((good["PNG"][middle] ^ 1,)) + good["PNG"][middle + 1 :],
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "bomb": bomb(8_001),
        "floating point": b"Pf\n2 2\n-1.0\n" + np.ones(4, np.float32).tobytes(),
    }
    path.write_bytes(contents[kind])
    return path


FAULTS = (
    "empty",
    "text",
    "truncated jpg",
    "truncated png",
    "header only",
    "one bit of a png",
    "PostScript",
    "bomb",
    "floating point",
    "link to nowhere",
)
