"""Decoding of the image files that occur in practice to upright 8-bit RGB; unusable files are refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image")
transforms = pytest.importorskip("torchvision.transforms.v2.functional")
import pictures  # noqa: E402

from sftn_fast.config import ConfigError  # noqa: E402
from sftn_fast.data import decode as module  # noqa: E402
from sftn_fast.data.decode import DecodeError, decode, find_fault, read_images, read_square  # noqa: E402

GREYS = np.array([[0, 1, 100], [128, 254, 255]], np.uint8)  # of 2 rows and 3 columns
UPPER = GREYS.astype(np.uint16) << 8 | 0x7B  # 16 bits, of which the upper 8 are these


def pixels(path):
    return np.asarray(decode(path))


@pytest.mark.parametrize("extension", ["png", "bmp", "webp", "ppm", "tif", "tiff", "gif", "PNG"])
def test_lossless_formats(extension, tmp_path):
    image = pictures.draw((40, 80, 160))
    options = {"lossless": True} if extension == "webp" else {}
    assert (pixels(pictures.write(tmp_path / f"a.{extension}", image, **options)) == (40, 80, 160)).all()


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
def test_jpeg(format, tmp_path):
    path = pictures.write(tmp_path / "a.jpg", pictures.draw((40, 80, 160)), format=format, quality=95)
    assert np.abs(pixels(path).astype(int) - (40, 80, 160)).max() <= 3


@pytest.mark.parametrize("named", ["a.jpg", "a.webp", "a"])
def test_the_content_decides_the_format(named, tmp_path):
    path = pictures.write(tmp_path / named, pictures.noise(), format="PNG")
    assert (pixels(path) == np.asarray(pictures.noise())).all()


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("grey.png", Image.fromarray(GREYS)),
        ("grey with transparency.png", Image.fromarray(np.stack([GREYS, GREYS], -1))),
        ("palette.png", Image.fromarray(GREYS).convert("P")),
        ("16 bits.png", Image.fromarray(UPPER)),
        ("16 bits.tif", Image.fromarray(UPPER)),
        ("16 bits.pgm", Image.fromarray(UPPER.astype(np.int32))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_grey_becomes_rgb_with_its_brightness(name, image, tmp_path):
    found = pixels(pictures.write(tmp_path / name, image))
    assert found.dtype == np.uint8
    assert (found == GREYS[..., None]).all()


def test_more_than_8_bits_a_channel_and_fewer(tmp_path):
    colour = tmp_path / "colour.png"
    values = np.stack([UPPER, UPPER[::-1], UPPER], -1)
    colour.write_bytes(pictures.png(3, 2, bits=16, colour_type=2, raw=values.astype(">u2").tobytes()))
    assert (pixels(colour) == np.stack([GREYS, GREYS[::-1], GREYS], -1)).all()
    bits = pictures.write(tmp_path / "bits.png", Image.fromarray(GREYS > 99))
    assert (pixels(bits) == 255 * (GREYS > 99)[..., None]).all()


def test_transparency_is_dropped(tmp_path):
    clear = np.concatenate([np.asarray(pictures.noise()), np.zeros((12, 12, 1), np.uint8)], -1)
    assert (pixels(pictures.write(tmp_path / "a.png", Image.fromarray(clear))) == clear[..., :3]).all()
    palette = pictures.draw("red").convert("P", palette=Image.Palette.ADAPTIVE)
    path = pictures.write(tmp_path / "b.png", palette, transparency=bytes((0,)))
    assert (pixels(path) == pictures.COLOURS["red"]).all()


def test_cmyk(tmp_path):
    path = pictures.write(tmp_path / "a.jpg", Image.new("CMYK", (12, 12), (0, 255, 255, 0)), quality=95)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(pixels(path).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize(
    ("orientation", "stored_to_upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_rotation_is_applied(orientation, stored_to_upright, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = pictures.write(tmp_path / "a.png", pictures.noise((7, 5)), exif=exif)
    assert (pixels(path) == stored_to_upright(np.asarray(pictures.noise((7, 5))))).all()


@pytest.mark.parametrize("kind", pictures.FAULTS)
def test_what_is_no_image_is_refused(kind, tmp_path):
    path = pictures.damaged(tmp_path / "a.jpg", kind)
    with pytest.raises(DecodeError):
        decode(path)
    assert find_fault(str(path))
    assert find_fault(str(pictures.write(tmp_path / "b.jpg"))) is None


def test_more_than_16_bits_are_refused(tmp_path):
    path = pictures.write(tmp_path / "a.tif", Image.fromarray(np.array([[0, 1 << 20]], np.int32)))
    with pytest.raises(DecodeError, match="more than 16 bits"):
        decode(path)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    path = pictures.damaged(tmp_path / "a.png", "bomb")
    assert path.stat().st_size < 20_000  # decoded to RGB it would be 192 MB
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("decoded"))
    with pytest.raises(DecodeError, match="8001 x 8001 pixels, more than the 64,000,000"):
        decode(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000])  # Pillow itself warns of the first and refuses the second
def test_larger_bombs(side, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(pictures.bomb(side))
    assert "pixels" in find_fault(str(path))


@pytest.mark.parametrize("size", [8, 12, 48])
@pytest.mark.parametrize("shape", [(24, 24), (48, 24), (24, 72)])
def test_resizing_and_cutting_are_torchvisions(shape, size, tmp_path):
    """At sizes where torchvision's rounding of the longer side and of the window's corner changes nothing."""
    image = pictures.noise(shape)
    found = read_square(pictures.write(tmp_path / "a.png", image), size)
    resized = transforms.center_crop(transforms.resize(image, [size], antialias=True), [size, size])
    assert np.abs(found - np.asarray(resized).transpose(2, 0, 1).astype(int)).max() <= 1


@pytest.mark.parametrize("shape", [(24, 41), (41, 24), (1, 1), (1, 100), (500, 375)])
def test_any_shape_becomes_a_square(shape, tmp_path):
    found = read_square(pictures.write(tmp_path / "a.png", pictures.draw("green", shape)), 31)
    assert (found.shape, found.dtype) == ((3, 31, 31), np.uint8)
    assert (found.transpose(1, 2, 0) == pictures.COLOURS["green"]).all()


def test_images_are_read_in_order_whatever_thread_reads_them(tmp_path):
    colours = [(i % 256, i // 256, 7) for i in range(3 * module.CHUNK + 5)]
    paths = [pictures.write(tmp_path / f"{i}.bmp", pictures.draw(c, (8, 8))) for i, c in enumerate(colours)]
    assert [tuple(image[:, 0, 0].tolist()) for image in read_images(paths, 8, root=tmp_path)] == colours


def test_the_first_file_that_fails_is_named(tmp_path):
    paths = [pictures.write(tmp_path / f"{i:03}.png") for i in range(3 * module.CHUNK)]
    for place in (100, 70):
        pictures.damaged(paths[place], "empty")
    with pytest.raises(ConfigError) as error:
        read_images(paths, 8, root=tmp_path)
    for part in (str(paths[70]), "repair or remove", f"sftn_fast.data.verify {tmp_path}", str(tmp_path / "skip.txt")):
        assert part in str(error.value)


def test_more_images_than_memory_are_refused(tmp_path):
    class Endless(list):
        def __len__(self):
            return 10**10

    with pytest.raises(ConfigError, match=r"10,000,000,000 images of data.image_size=64 need .* GiB of memory"):
        read_images(Endless(), 64, root=tmp_path)


@pytest.mark.parametrize("broken", ["PIL.Image", "PIL.ImageOps"])
def test_without_pillow(broken, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, broken, None)
    with pytest.raises(ConfigError, match=rf"Pillow, which can't be imported \(.*{broken}.*pip install pillow"):
        read_images([tmp_path / "a.jpg"], 8, root=tmp_path)
