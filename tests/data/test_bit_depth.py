"""Images of every mode and bit depth: decoded with the right brightness or refused, and never black."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision.io")
import pictures  # noqa: E402
from batches import joined  # noqa: E402

from sftn_fast import models  # noqa: E402
from sftn_fast.config import ConfigError, DataConfig  # noqa: E402
from sftn_fast.data import dali_decoder, verify  # noqa: E402
from sftn_fast.data.decode import FORMATS, DecodeError, decode, find_fault, read_images  # noqa: E402
from sftn_fast.data.encoded_image import read_encoded  # noqa: E402
from sftn_fast.data.file_loaders import FileEvalLoader, FileSplit, ImageFormat  # noqa: E402
from sftn_fast.data.source import load  # noqa: E402
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder  # noqa: E402
from sftn_fast.predict import main as predict_main  # noqa: E402

GREY_OF_16_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
MODES = ("1", "L", "P", "LA", "PA", "La", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
GREYS = np.arange(256, dtype=np.uint16).reshape(16, 16)
LEVELS = {8: 1, 10: 4, 12: 16, 14: 64}  # step between the 256 grey levels, by number of bits


def loaded(name, paths, white=None):
    """Return the images [N, 3, 16, 16] from a loader, with values from 0 to 255."""
    if name == "memory":
        return read_images(paths, 16, root=Path("/"), white=white).float()
    form = ImageFormat(16, (0.0,) * 3, (1 / 255,) * 3, torch.device("cpu"), white=white)
    decoder = {"torchvision": TorchvisionDecoder, "dali": dali_decoder.DaliDecoder}[name]
    files = FileSplit([str(path) for path in paths], torch.zeros(len(paths), dtype=torch.int64))
    return joined(FileEvalLoader(files, decoder(form, workers=1, root=Path("/"))))[0]


def of_mode(mode, level):
    """Return an image of uniform grey ``level`` in ``mode``, as far as the mode can express it."""
    if mode == "I":
        return Image.fromarray(np.full((16, 16), level * 257, np.int32))
    if mode in GREY_OF_16_BITS:
        raw = np.full((16, 16), level * 257, ">u2" if mode == "I;16B" else "<u2").tobytes()
        return Image.frombytes(mode, (16, 16), raw)
    if mode == "1":
        return Image.new("1", (16, 16), 1)
    grey = Image.new("L", (16, 16), level)
    if mode in ("RGBX", "RGBa", "LAB", "HSV", "YCbCr"):
        grey = grey.convert("RGB" if mode != "RGBa" else "RGBA")
    return grey.convert("LA").convert(mode) if mode == "La" else grey.convert(mode)


def everything_pillow_writes(folder):
    """Write a grey image in every mode and format that Pillow supports; return the paths."""
    Image.init()
    paths = {}
    for mode in (*MODES, *GREY_OF_16_BITS):
        # The other formats' writers clip these modes to 8 bits.
        deep = mode in ("I", "F", *GREY_OF_16_BITS)
        for name in ("PNG", "PPM", "TIFF", "JPEG2000") if deep else FORMATS:
            path = folder / f"{mode.replace(';', '_')}.{name.lower()}"
            try:
                of_mode(mode, 200).save(path, format=name)
            except (OSError, ValueError, KeyError):  # the format does not support the mode
                path.unlink(missing_ok=True)
                continue
            paths[mode, name] = path
    return paths


def test_every_mode_that_pillow_writes_through_every_loader(tmp_path):
    pytest.importorskip("nvidia.dali.fn")
    paths = everything_pillow_writes(tmp_path)
    assert len(paths) > 60 and {name for _, name in paths} == set(FORMATS)
    refused = {key for key, path in paths.items() if find_fault(str(path))}
    # Floating-point numbers, 32 bits whose white isn't known, and colours that Pillow itself does not convert.
    assert {mode for mode, _ in refused} <= {"F", "I", "LAB"}
    assert {("F", "TIFF"), ("I", "TIFF"), ("F", "PPM")} <= refused
    assert not any(name in ("PNG", "PPM") for mode, name in refused if mode == "I")  # written as 16 bits
    good = {key: path for key, path in paths.items() if key not in refused}
    for name in ("memory", "torchvision", "dali"):
        for (mode, _), image in zip(good, loaded(name, list(good.values())), strict=True):
            expected = 255 if mode == "1" else 200
            assert (image - expected).abs().max() <= 4, (name, mode)
    for key in refused:
        message = find_fault(str(paths[key]))
        with pytest.raises(DecodeError, match=message[:20]):
            read_encoded(str(paths[key]))


def sixteen_bits(folder, values, **tags):
    """Write 16-bit grey ``values`` in every format that supports them; return the paths."""
    image = Image.fromarray(values)
    raw = values.tobytes()
    (folder / "big.tif").write_bytes(pictures.tiff(16, 16, values.astype(">u2").tobytes(), {}, order=">"))
    (folder / "plain.pgm").write_text("P2\n16 16\n65535\n" + " ".join(map(str, values.ravel())))
    (folder / "by hand.tif").write_bytes(pictures.tiff(16, 16, raw, {}))
    written = [pictures.write(folder / f"a.{ending}", image, **tags) for ending in ("png", "tif", "pgm", "jp2")]
    packed = pictures.write(folder / "packed.tif", image, compression="tiff_lzw")
    return [*written, packed, *(folder / name for name in ("big.tif", "plain.pgm", "by hand.tif"))]


@pytest.mark.parametrize("bits", LEVELS)
def test_fewer_bits_in_16_are_refused_or_come_out_right(bits, tmp_path):
    values = GREYS * LEVELS[bits]
    for path in sixteen_bits(tmp_path, values):
        with pytest.raises(
            DecodeError,
            match=r"16-bit values is .*; save it with 8 bits, or give the value of white "
            r"\(for example --data.white 4095\)",
        ):
            decode(path)
        with pytest.raises(DecodeError, match=r"data.white"):
            read_encoded(str(path))
        for pixels in (np.asarray(decode(path, 2**bits - 1)), read_encoded(str(path), 2**bits - 1).pixels):
            assert (pixels == GREYS[..., None]).all(), path.name
        with pytest.raises(DecodeError, match="above white, which is 100;"):
            decode(path, 100)


def test_16_bits_are_16_bits(tmp_path):
    dark = np.where(GREYS < 100, GREYS * 257, 0).astype(np.uint16)  # 8 bits scaled up to 16
    for number, (values, greys) in enumerate(
        [(GREYS << 8 | 0x7B, GREYS), (GREYS * 257, GREYS), (dark, dark // 257), (dark * 0, dark * 0)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in sixteen_bits(folder, values.astype(np.uint16)):
            assert (np.asarray(decode(path)) == greys[..., None]).all(), path.name


@pytest.mark.parametrize(
    ("tags", "bits"), [({341: 4095}, 12), ({281: 4095}, 12), ({281: 1023}, 10), ({341: 255, 281: 200}, 8)]
)
def test_a_tiff_that_says_which_value_is_white(tags, bits, tmp_path):
    path = pictures.write(tmp_path / "a.tif", Image.fromarray(GREYS * LEVELS[bits]), tiffinfo=tags)
    assert (np.asarray(decode(path)) == GREYS[..., None]).all()
    assert (np.asarray(decode(path, 65535)) == GREYS[..., None]).all()  # the file's statement has priority


def test_the_largest_value_of_a_tiff_is_no_depth(tmp_path):
    path = pictures.write(tmp_path / "a.tif", Image.fromarray(GREYS * 11), tiffinfo={281: 255 * 11})
    assert "data.white" in find_fault(str(path))


def test_a_tiff_of_12_bits_a_sample(tmp_path):
    values = GREYS.ravel().astype(int) * 16
    pairs = zip(values[::2], values[1::2], strict=True)
    raw = b"".join(bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in pairs)
    (tmp_path / "a.tif").write_bytes(pictures.tiff(16, 16, raw, {258: 12}))
    assert (np.asarray(decode(tmp_path / "a.tif")) == GREYS[..., None]).all()


def test_a_tiff_in_which_0_is_white(tmp_path):
    for name, values in (("a.tif", GREYS * 257), ("b.tif", 4095 - GREYS * 16)):
        tags = {262: 0, 341: values.max()}
        (tmp_path / name).write_bytes(pictures.tiff(16, 16, values.astype("<u2").tobytes(), tags))
        assert (np.asarray(decode(tmp_path / name))[..., 0] == (255 - GREYS if name == "a.tif" else GREYS)).all()


@pytest.mark.parametrize("bits", LEVELS)
def test_a_png_that_says_how_many_bits_are_significant(bits, tmp_path):
    extra = [(b"sBIT", bytes((bits,)))]
    for values in (GREYS * LEVELS[bits], GREYS * 257):  # in the significant bits, or scaled up to all 16
        raw = values.astype(">u2").tobytes()
        (tmp_path / "a.png").write_bytes(pictures.png(16, 16, bits=16, colour_type=0, raw=raw, extra=extra))
        assert (np.asarray(decode(tmp_path / "a.png")) == GREYS[..., None]).all()


@pytest.mark.parametrize("kind", ["P2", "P5"])
@pytest.mark.parametrize("bits", LEVELS)
def test_a_pgm_says_it_by_its_largest_value(kind, bits, tmp_path):
    top, values = 2**bits - 1, GREYS * LEVELS[bits] + (LEVELS[bits] - 1) * (GREYS > 127)
    text = " ".join(map(str, values.ravel())).encode()
    raw = values.astype(">u2" if bits > 8 else np.uint8).tobytes()
    (tmp_path / "a.pgm").write_bytes(f"{kind}\n16 16\n{top}\n".encode() + (text if kind == "P2" else raw))
    found = np.asarray(decode(tmp_path / "a.pgm"))[..., 0]
    assert np.abs(found - values * (255 / top)).max() <= 1


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_16_bit_colours(colour_type, tmp_path):
    """A PNG of grey and transparency, of colours, and of both."""
    channels = {2: 3, 4: 2, 6: 4}[colour_type]
    opaque = np.full((16, 16), 2**16 - 1)
    for values, is_clear in ((GREYS * 257, True), (GREYS * 16, False), (GREYS, False)):
        planes = [values] * channels if colour_type == 2 else [values] * (channels - 1) + [opaque]
        raw = np.stack(planes, -1).astype(">u2").tobytes()
        (tmp_path / "a.png").write_bytes(pictures.png(16, 16, bits=16, colour_type=colour_type, raw=raw))
        assert (np.asarray(decode(tmp_path / "a.png", 65535))[..., 0] == values >> 8).all()
        if is_clear:
            assert (np.asarray(decode(tmp_path / "a.png"))[..., 0] == values >> 8).all()
            continue
        with pytest.raises(DecodeError, match=r"16-bit colours are all below (4,096|256), .*data.white"):
            decode(tmp_path / "a.png")
        with pytest.raises(DecodeError, match="only the upper 8 of 16 bits of its colours are kept"):
            decode(tmp_path / "a.png", 4095)


def test_16_bit_colours_of_a_tiff_and_of_a_ppm(tmp_path):
    for values, is_clear in ((GREYS * 257, True), (GREYS * 16, False)):
        raw = np.stack([values] * 3, -1)
        (tmp_path / "a.ppm").write_bytes(b"P6\n16 16\n65535\n" + raw.astype(">u2").tobytes())
        tags = {258: 16, 262: 2, 277: 3, 339: 1}
        (tmp_path / "a.tif").write_bytes(pictures.tiff(16, 16, raw.astype("<u2").tobytes(), tags))
        for name in ("a.ppm", "a.tif"):
            if is_clear:
                assert (np.asarray(decode(tmp_path / name)) == GREYS[..., None]).all()
            else:
                assert "16-bit colours are all below" in find_fault(str(tmp_path / name)), name


def test_numbers_with_a_sign_and_floating_point_numbers(tmp_path):
    signed = pictures.tiff(16, 16, GREYS.astype("<i2").tobytes(), {339: 2})
    (tmp_path / "signed.tif").write_bytes(signed)
    assert "data.white" in find_fault(str(tmp_path / "signed.tif"))
    assert (np.asarray(decode(tmp_path / "signed.tif", 255)) == GREYS[..., None]).all()
    below = pictures.tiff(16, 16, (GREYS.astype("<i2") - 9).tobytes(), {339: 2})
    (tmp_path / "below.tif").write_bytes(below)
    assert "the darkest is -9" in find_fault(str(tmp_path / "below.tif"), 255)
    bytes_with_sign = pictures.tiff(16, 16, GREYS.astype(np.uint8).tobytes(), {258: 8, 339: 2})
    (tmp_path / "bytes.tif").write_bytes(bytes_with_sign)
    assert find_fault(str(tmp_path / "bytes.tif"))

    floats = (GREYS / 255).astype(np.float32)
    path = pictures.write(tmp_path / "a.tif", Image.fromarray(floats))
    assert "floating-point" in find_fault(str(path)) and "data.white" in find_fault(str(path))
    assert (np.asarray(decode(path, 1.0)) == GREYS[..., None]).all()
    floats[3, 3] = np.nan
    assert "not finite" in find_fault(str(pictures.write(tmp_path / "b.tif", Image.fromarray(floats))), 1.0)
    path = pictures.write(tmp_path / "c.tif", Image.fromarray((GREYS * 16).astype(np.int32)))
    assert "more than 16 bits" in find_fault(str(path))
    assert (np.asarray(decode(path, 4095)) == GREYS[..., None]).all()


@pytest.mark.parametrize("loader", ["memory", "torchvision", "dali"])
def test_white_is_an_option_of_every_loader(loader, tmp_path):
    if loader == "dali":
        pytest.importorskip("nvidia.dali.fn")
    path = pictures.write(tmp_path / "a.png", Image.fromarray(np.full((16, 16), 3200, np.uint16)))
    assert (loaded(loader, [path], white=4095) - 200).abs().max() < 1.5
    with pytest.raises(ConfigError, match=r"a.png can't be decoded \(.*data.white"):
        loaded(loader, [path])


def test_white_in_the_configuration(tmp_path):
    for split in ("train", "val"):
        for name, level in (("dark", 800), ("bright", 3200)):
            image = Image.fromarray(np.full((16, 16), level, np.uint16))
            pictures.write(tmp_path / split / name / "a.png", image)
    config = {"name": "folder", "root": str(tmp_path), "image_size": 16}
    source = load(DataConfig(**config, white=4095))
    assert source.train.pixels.float().mean((1, 2, 3)).tolist() == [200, 50]
    with pytest.raises(ConfigError, match=r"data.white"):
        load(DataConfig(**config))
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ConfigError, match=r"data.white must be"):
            DataConfig(**config, white=wrong)
    with pytest.raises(ConfigError, match=r"data.white must be null for data.name=cifar10"):
        DataConfig("cifar10", white=255)


def test_sixteen_bit_bmps_are_of_8_bits(tmp_path):
    """They have 5 or 6 bits per channel, although the name of Pillow's decoder contains 16."""
    header = struct.pack("<2sLHHLLllHHLLllLL", b"BM", 54 + 512, 0, 0, 54, 40, 16, 16, 1, 16, 0, 512, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(header + struct.pack("<H", 0b0_00011_00011_00011) * 256)
    assert np.abs(np.asarray(decode(tmp_path / "a.bmp")).astype(int) - 24).max() <= 1


def test_each_program_names_its_own_option(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(verify, "ProcessPoolExecutor", lambda count, *_, **__: ThreadPoolExecutor(count))
    for name in ("start_context", "scratch_folder"):
        monkeypatch.setattr(verify.decoder_processes, name, lambda *_: None)
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    assert find_fault(str(tmp_path / "float.tif")).endswith(
        "or give the value of white (for example --data.white 4095)"
    )
    assert verify.main([str(tmp_path), "--workers", "1"]) == 1
    assert "or give the value of white (for example --white 4095)" in capsys.readouterr().out
    preprocessing = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    models.save(models.build("resnet8", num_classes=2), tmp_path / "student", meta={"preprocessing": preprocessing})
    assert predict_main([str(tmp_path / "student"), str(tmp_path / "float.tif")]) == 2
    error = capsys.readouterr().err
    assert "save it with 8 bits; predict takes the value of white, data.white, from the training" in error
    assert "--" not in error
