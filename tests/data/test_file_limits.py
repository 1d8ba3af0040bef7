"""Files that cost too much to decode: refused in one line, quickly and with little memory."""

from __future__ import annotations

import io
import os
import socket
import struct
import tracemalloc
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
import pictures  # noqa: E402

from sftn_fast.config import ConfigError, DataConfig  # noqa: E402
from sftn_fast.data import file_limits, regular_files  # noqa: E402
from sftn_fast.data.decode import find_fault  # noqa: E402
from sftn_fast.data.encoded_image import DecodeError, read_encoded  # noqa: E402
from sftn_fast.data.source import load  # noqa: E402


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def many_scans(count):
    """Build a progressive JPEG whose last scan is repeated."""
    file = io.BytesIO()
    pictures.noise((64, 64)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * count + b"\xff\xd9"


def gif(width, height, *, comments=0, frame=False):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    extension = b"!\xfe" + b"\x01x" * comments + b"\0" if comments else b""
    image = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0" if frame else b""
    return head + extension + image + b";"


def tiff_of(entries):
    """Build a TIFF of one directory from entries of tag, type, count and value."""
    return (
        b"II*\0\x08\0\0\0"
        + struct.pack("<H", len(entries))
        + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
        + bytes(4)
    )


HUGE = {
    "scans.jpg": lambda: many_scans(2000),
    "segments.jpg": lambda: b"\xff\xd8" + b"\xff\xfe\x00\x02" * 20_000 + many_scans(0)[2:],
    "comment.ppm": lambda: b"P6\n#" + b"x" * 5_000_000 + b"\n2 2\n255\n" + bytes(12),
    "blanks.ppm": lambda: b"P6" + b"\n" * 5_000_000 + b"2 2\n255\n" + bytes(12),
    "comments.pgm": lambda: b"P2 2 2 255\n" + b"#\n" * 100_000 + b"1 2 3 4",
    "comments.gif": lambda: gif(4, 4, comments=200_000, frame=True),
    "screen.gif": lambda: gif(7_900, 7_900),
    "screen with a pixel.gif": lambda: gif(7_900, 7_900, frame=True),
    "chunks.png": lambda: (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
        + chunk(b"teXt", b"") * 20_000
    ),
    "entries.tif": lambda: tiff_of([(1000 + i, 3, 1, 0) for i in range(20_000)]),
    "overlapping.tif": lambda: tiff_of([(1000 + i, 7, 1_000_000, 8) for i in range(100)]) + bytes(1_000_000),
    "strips.tif": lambda: tiff_of([(256, 4, 1, 4), (257, 4, 1, 4), (273, 4, 1_000_000, 8)]) + bytes(4_000_000),
    "offset.tif": lambda: b"II+\0\x08\0\0\0" + b"\xff" * 8,
    "slow.ppm": lambda: b"P6\n2500 2000\n100\n",
    "blank.webp": lambda: blank_webp(),
}


def blank_webp():
    file = io.BytesIO()
    Image.new("RGB", (4100, 4100)).save(file, "WEBP", lossless=True, method=0)
    return file.getvalue()


@pytest.mark.parametrize("name", HUGE)
def test_what_costs_too_much_is_refused_before_it_is_decoded(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_bytes(HUGE[name]())
    for plugin in ("PIL.ImageFile.ImageFile", "PIL.WebPImagePlugin.WebPImageFile", "PIL.TiffImagePlugin.TiffImageFile"):
        monkeypatch.setattr(f"{plugin}.load", lambda self: pytest.fail("decoded"))
    tracemalloc.start()
    fault = find_fault(str(path))
    with pytest.raises(DecodeError):
        read_encoded(str(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault and "\n" not in fault and len(fault) < 200
    assert peak < 40_000_000


@cache
def packed_zeros(count):
    return zlib.compress(bytes(count), 1)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_chunk_that_unpacks_to_much_costs_little(kind, tmp_path):
    """Pillow itself limits them, and then either refuses the image or drops the text."""
    extra = [(kind, b"name\0\0" + packed_zeros(100_000_000))] * 3
    content = pictures.png(4, 4, bits=8, colour_type=0, raw=bytes(range(16)), extra=extra)
    (tmp_path / "a.png").write_bytes(content)
    tracemalloc.start()
    find_fault(str(tmp_path / "a.png"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def frames(count, size=(8, 8)):
    return [pictures.noise(size, seed) for seed in range(count)]


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif", "avif"])
def test_of_many_frames_or_pages_the_first_is_read(ending, tmp_path, monkeypatch):
    first, *rest = frames(12)
    options = {"lossless": True} if ending == "webp" else {"quality": 100} if ending == "avif" else {}
    path = pictures.write(tmp_path / f"a.{ending}", first, save_all=True, append_images=rest, **options)
    with Image.open(path) as image:
        assert image.n_frames == 12
    seek = Image.Image.seek
    monkeypatch.setattr(Image.Image, "seek", lambda self, frame: pytest.fail("seeks") if frame else seek(self, frame))
    assert find_fault(str(path)) is None
    found = read_encoded(str(path)).pixels
    allowed = {"gif": 80, "avif": 60}.get(ending, 0)  # GIF has a palette, AVIF is lossy
    assert np.abs(found.astype(int) - np.asarray(first)).mean() <= allowed


def test_usual_files_are_let_through(tmp_path):
    """They are just within the limits."""
    (tmp_path / "a.jpg").write_bytes(many_scans(80))
    (tmp_path / "a.gif").write_bytes(gif(300, 200, comments=1000, frame=True))
    (tmp_path / "a.ppm").write_bytes(b"P6\n#" + b"x" * 5000 + b"\n2 2\n255\n" + b" " * 12)
    (tmp_path / "b.ppm").write_bytes(b"P6\n# all is white space\n200 200\n255\n" + b" " * 120_000)
    (tmp_path / "c.pgm").write_bytes(b"P5\n2 2\n#one more\n255\n" + bytes(4))
    (tmp_path / "d.pbm").write_bytes(b"P4\n8 2\n\xf0\x0f")
    pictures.write(tmp_path / "a.tif", pictures.draw(size=(4, 20_000)), tiffinfo={278: 1, 270: "x" * 100_000})
    pictures.write(tmp_path / "blank.tif", Image.new("1", (2480, 3508), 1), compression="group4")
    pictures.write(tmp_path / "a.png", Image.new("L", (4100, 4000)))
    for path in sorted(tmp_path.iterdir()):
        assert find_fault(str(path)) is None, path.name


def test_a_page_of_many_passes_is_refused_by_its_pixels(monkeypatch, tmp_path):
    (tmp_path / "a.jpg").write_bytes(many_scans(20))
    assert find_fault(str(tmp_path / "a.jpg")) is None
    monkeypatch.setattr(file_limits, "MAX_PASSES", 20 * 64 * 64)
    assert "scans of 4,096 pixels each" in find_fault(str(tmp_path / "a.jpg"))


def test_a_file_of_too_many_bytes(tmp_path, monkeypatch):
    path = pictures.write(tmp_path / "a.png")
    monkeypatch.setattr("sftn_fast.data.decode.MAX_BYTES", 10)
    assert "bytes, more than the 10 that are read" in find_fault(str(path))


def put(path, kind):
    """Create something that has an image's name and is not a regular file."""
    if kind.startswith("link to "):
        target = path.with_name("target")
        put(target, kind.removeprefix("link to "))
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name may have 100 letters
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to("/dev/zero")


KINDS = ("pipe", "socket", "device", "link to pipe", "link to socket")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_opened(kind, tmp_path, monkeypatch):
    put(tmp_path / "x.png", kind)
    monkeypatch.setattr(regular_files, "_open_without_blocking", lambda *_: pytest.fail("opened"))
    word = kind.rpartition(" ")[2]
    assert f"no regular file but a {word}" in find_fault(str(tmp_path / "x.png"))
    with pytest.raises(DecodeError, match=f"no regular file but a {word}"):
        read_encoded(str(tmp_path / "x.png"))


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_folder_it_is_left_out_and_named(kind, tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            pictures.write(tmp_path / split / name / "a.png")
    put(tmp_path / "train" / "cat" / "x.png", kind)
    source = load(DataConfig("folder", root=str(tmp_path), image_size=8))
    assert len(source.train.labels) == 2
    assert "1 that can't be read as files (x.png)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["skip.txt", "val_annotations.txt"])
def test_lists_that_are_pipes(name, tmp_path):
    for part in ("train/n1/images", "train/n2/images", "val/images"):
        pictures.write(tmp_path / part / "a.JPEG")
    folder = tmp_path / "val" if name.startswith("val") else tmp_path
    if name == "skip.txt":
        (tmp_path / "val" / "val_annotations.txt").write_text("a.JPEG\tn1\n")
    os.mkfifo(folder / name)
    with pytest.raises(ConfigError, match=rf"{name} can't be read \(no regular file but a pipe\)"):
        load(DataConfig("tiny_imagenet", root=str(tmp_path)))
    assert Path(folder / name).is_fifo()
