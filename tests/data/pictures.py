"""Small image files: coloured ones that can be told apart, and damaged ones."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (128, 128, 128)}


def draw(colour="red", size=(12, 12)):
    return Image.new("RGB", size, COLOURS.get(colour, colour))


def noise(size=(12, 12), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8))


def write(path, image=None, **options):
    """Write an image, in the format of its name unless another is given; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    (draw() if image is None else image).save(path, **options)
    return path


def png(width, height, *, bits, colour_type, raw):
    """A PNG from its unfiltered rows, for what Pillow does not write."""
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)
    filtered = np.pad(rows, ((0, 0), (1, 0))).tobytes()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(filtered)),
        (b"IEND", b""),
    ]
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(side):
    """A square black PNG of one bit a pixel: small as a file, not when it is decoded."""
    return png(side, side, bits=1, colour_type=0, raw=bytes(side * -(-side // 8)))


def damaged(path, kind):
    """Put a file at ``path`` that is named like an image and is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "link to nowhere":
        path.symlink_to(path.parent / "gone")
        return path
    good = {}
    for extension in ("jpg", "png"):
        file = write(path.with_name(f"good.{extension}"), noise((64, 64)))
        good[extension] = file.read_bytes()
        file.unlink()
    middle = len(good["png"]) // 2
    contents = {
        "empty": b"",
        "text": b"<html>404 not found</html>\n" * 20,
        "truncated jpg": good["jpg"][: len(good["jpg"]) // 2],
        "truncated png": good["png"][:middle],
        "header only": good["jpg"][:20],
        "one bit of a png": good["png"][:middle] + bytes((good["png"][middle] ^ 1,)) + good["png"][middle + 1 :],
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
