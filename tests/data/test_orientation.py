"""Image orientation from one EXIF tag; nothing else in the EXIF data makes an image unusable."""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
import pictures  # noqa: E402

from sftn_fast.data.decode import decode  # noqa: E402
from sftn_fast.data.encoded_image import read_encoded  # noqa: E402
from sftn_fast.data.orientation import read_orientation  # noqa: E402

MUTATIONS = 600
TAG = bytes((1, 0x12, 0, 3, 0, 0, 0, 1, 0, 6))  # its bytes in a big-endian block


def block(orientation=6):
    """Build a block of EXIF data as cameras write it, with directories, texts and fractions."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model of a camera", orientation
    exif[0x011A], exif[0x011B], exif[0x0128], exif[0x0132] = 72.0, 72.0, 2, "2026:01:01 00:00:00"
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x9003: "2026:01:01 00:00:00", 0x927C: bytes(40)})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 30.0, 1.5)})
    return exif.tobytes()


@cache
def plain_jpeg():
    file = io.BytesIO()
    pictures.noise((24, 16)).save(file, "JPEG")
    return file.getvalue()


def jpeg(exif):
    """Build a JPEG with a block of EXIF data after its first segment, where Pillow writes it."""
    content = plain_jpeg()
    end = 4 + int.from_bytes(content[4:6], "big")
    return content[:end] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[end:]


def test_the_blocks_are_put_where_pillow_puts_them():
    file = io.BytesIO()
    pictures.noise((24, 16)).save(file, "JPEG", exif=block())
    assert jpeg(block()) == file.getvalue()


def test_the_tag_is_found():
    for order in (b"II", b"MM"):
        for value in range(1, 9):
            exif = Image.Exif()
            exif.endian = "<" if order == b"II" else ">"
            exif[0x0112] = value
            assert read_orientation(exif.tobytes()) == value
            assert read_orientation(exif.tobytes().removeprefix(b"Exif\0\0")) == value
    assert read_orientation(block(8)) == 8


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_what_is_no_orientation_is_upright(value):
    assert read_orientation(block(value)) == 1
    for exif in (b"", b"Exif\0\0", b"II*\0", block()[:20], b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff"):
        assert read_orientation(exif) == 1


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd EXIF
def test_odd_exif_refuses_nothing_that_pillow_opens(tmp_path):
    """And the tag counts wherever it survives, whatever else is odd."""
    draws, exif, path = np.random.default_rng(0), block(), tmp_path / "a.jpg"
    upright = (16, 24, 3)
    odd = turned = 0
    for number in range(MUTATIONS):
        changed = bytearray(exif)
        for _ in range(draws.integers(1, 9)):
            # After "Exif", without which there is no EXIF; a random value, or an extreme size or offset.
            place = draws.integers(6, len(exif))
            changed[place] = draws.choice([draws.integers(256), 0, 255, 128])
        if number % 7 == 0:
            del changed[draws.integers(6, len(changed)) :]
        path.write_bytes(jpeg(bytes(changed)))
        with Image.open(path) as image:
            image.load()
            theirs = image.getexif().get(0x0112, 1)
            try:
                ImageOps.exif_transpose(image)
            except Exception:  # it reads and writes all of the EXIF
                odd += 1
        encoded = read_encoded(str(path))
        shapes = {np.asarray(decode(path)).shape, (encoded.height, encoded.width, 3)}
        assert len(shapes) == 1
        if theirs in (5, 6, 7, 8):
            turned += 1
            assert shapes == {(24, 16, 3)}, changed
        elif TAG not in changed:  # Pillow may lose it together with damaged tags before it
            assert shapes == {upright}, changed
    assert odd > 3 and turned > 100  # both cases must occur


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["png", "webp", "tif", "avif", "jpg"])
def test_odd_exif_of_other_formats(ending, tmp_path):
    good = pictures.write(tmp_path / f"a.{ending}", pictures.noise((24, 16)), exif=block())
    assert np.asarray(decode(good)).shape == (24, 16, 3)
    content, draws = good.read_bytes(), np.random.default_rng(1)
    place = content.index(b"Model of a camera")
    for number in range(60):
        changed = bytearray(content)
        for offset in draws.integers(max(8, place - 100), place + 100, size=3):
            changed[offset] = draws.integers(256)
        path = tmp_path / f"{number}.{ending}"
        path.write_bytes(changed)
        try:
            with Image.open(path) as image:
                image.load()
        except Exception:  # more than the EXIF data was damaged
            continue
        assert sorted(np.asarray(decode(path)).shape) == [3, 16, 24]


def test_an_orientation_in_xmp_alone(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    path = pictures.write(tmp_path / "a.jpg", pictures.noise((24, 16)), xmp=xmp)
    assert np.asarray(decode(path)).shape == (24, 16, 3)
    assert (read_encoded(str(path)).height, read_encoded(str(path)).width) == (24, 16)
