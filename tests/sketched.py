"""Pictures of one pixel in reports: Matplotlib takes a second to render those of a run, longer than a tiny training.

Imported by each process that runs tests. The code that plots runs as usual. Tests of pictures have the fixture
`rendered`.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

from sftn_fast.report import compared_curves, curves, figure
from sftn_fast.utils.atomic import write_atomically


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PIXEL = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
PIXEL += _chunk(b"tEXt", f"Software\0{figure.AUTHOR}".encode())
PIXEL += _chunk(b"IDAT", zlib.compress(b"\0\0")) + _chunk(b"IEND", b"")


def sketch(plt: Any, plotted: Any, path: Path) -> None:
    """Do as :func:`sftn_fast.report.figure.save`, but for the rendering."""
    plt.close(plotted)
    write_atomically(path, PIXEL)


WITH_PICTURES = (figure, curves, compared_curves)
render = figure.save
for module in WITH_PICTURES:
    module.save = sketch
