"""Names of files and classes in what predict writes: as they are for programs, harmless on a terminal."""

from __future__ import annotations

import csv
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sftn_fast import models
from sftn_fast.data import notices
from sftn_fast.experiment import class_accuracy
from sftn_fast.predict.command import main
from sftn_fast.utils.csv_text import csv_text
from sftn_fast.utils.text import as_bytes

NAMES = [
    "Screenshot 2026-11-30 at 3.04.05\u202fPM.png",
    "a\u00a0b.png",
    "\U0001f469\u200d\U0001f467.png",  # two emoji, joined to one
    "line\nfeed.png",
    "carriage\rreturn.png",
    "back\\nslash.png",
    'comma, "quote".png',
    "\x1b[31mred.png",
    "\u202egnp.png",
    " space .png",
    "soft\u00adhyphen.png",
    "\ue000private.png",
    os.fsdecode(b"caf\xe9.png"),
]
CLASSES = [*(name.removesuffix(".png") for name in NAMES[:9]), "\ud800"]
PREPROCESSING = {"resize": 8, "crop": 8, "mean": [0.5] * 3, "std": [0.25] * 3, "white": None}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    network = models.build("resnet8", num_classes=10)
    models.save(network, folder, meta={"preprocessing": PREPROCESSING, "class_names": CLASSES})
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(content, "png")
    for name in NAMES:
        (folder / name).write_bytes(content.getvalue())
    notices._printed.clear()
    return folder


def rows_of(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")))


def test_a_csv_has_the_names_as_they_are(student, images, tmp_path, capfdbinary):
    output = tmp_path / "out.csv"
    assert main([str(student), str(images), "--output", str(output), "--top", "10"]) == 0
    rows = rows_of(output.read_bytes())[1:]
    assert {row[0] for row in rows} == {*NAMES} and all((images / row[0]).is_file() for row in rows)
    assert {*rows[0][1::2]} == {*CLASSES[:-1], "\ufffd"}
    capfdbinary.readouterr()
    assert main([str(student), str(images), "--top", "10"]) == 0
    assert capfdbinary.readouterr().out == output.read_bytes()


HARMFUL = {chr(code) for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))} - {
    "\n"
}


def test_a_terminal_gets_nothing_that_does_harm(student, images, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main([str(student), str(images), "--top", "10"]) == 0
    out = capsys.readouterr().out
    assert not HARMFUL & {*out} and len(out.splitlines()) == 1 + len(NAMES)
    assert NAMES[0] in out and NAMES[2] in out and "\\x1b[31mred.png" in out and "caf\\xe9.png" in out
    for name in NAMES:
        assert main([str(student), str(images / name), "--top", "10"]) == 0
        out = capsys.readouterr().out
        assert not HARMFUL & {*out} and out.count("\n") == 1 and NAMES[2].removesuffix(".png") in out


@pytest.mark.parametrize("names", [CLASSES, NAMES])
def test_accuracy_by_class_has_the_names_as_they_are(names, tmp_path):
    counts = [1] * len(names)
    class_accuracy.write(tmp_path, counts, counts, counts, names)
    found = [row[1] for row in rows_of((tmp_path / class_accuracy.FILE).read_bytes())[1:]]
    assert found == [name.replace("\ud800", "\ufffd") for name in names]


@pytest.mark.parametrize("cell", ["", "\r", "\n", "\r\n", "a\rb", '"', ",", "\x85", "\u2028", "a\0b"])
def test_any_cell_is_read_back(cell):
    rows = [[cell, "x", "1"], ["x", cell, cell]]
    assert rows_of(as_bytes(csv_text(rows))) == rows


def test_what_is_no_image_is_counted(student, images, tmp_path, capsys):
    for name in ("a.heic", "b.heic", "no-suffix", "notes.txt", ".hidden.png"):
        (images / name).touch()
    for folder in (".cache", "__MACOSX"):
        (images / folder).mkdir()
        (images / folder / "x.png").touch()
    assert main([str(student), str(images), "--output", str(tmp_path / "out.csv")]) == 0
    error = capsys.readouterr().err
    line = next(line for line in error.splitlines() if "ignored" in line)
    assert "ignored 4 files that are not images (.heic 2, .txt 1, no ending 1), 1 hidden file" in line
    assert "folders .cache, __MACOSX" in line


def test_a_folder_of_no_images_says_what_it_has(student, tmp_path, capsys):
    (tmp_path / "x.heic").touch()
    notices._printed.clear()
    assert main([str(student), str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "ignored 1 file that is not an image (.heic 1)" in error and "IMAGE must be a folder with images" in error


def test_one_unusable_image(student, tmp_path, capsys):
    (tmp_path / "a.png").touch()
    assert main([str(student), str(tmp_path), "--skip-undecodable"]) == 2
    assert "error: the only image is not usable: " in capsys.readouterr().err


@pytest.mark.parametrize("way", ["itself", "symlink", "hard link", "nested", "named"])
def test_an_output_that_is_an_input_is_refused(way, student, images, tmp_path, capsys):
    image = images / NAMES[0]
    output = tmp_path / "out"
    if way == "itself":
        output = image
    elif way == "symlink":
        output.symlink_to(image)
    elif way == "hard link":
        os.link(image, output)
    elif way == "nested":
        (images / "sub").mkdir()
        output = Path(image.rename(images / "sub" / "x.png"))
    plugin = tmp_path / "plugin.py"
    if way == "named":
        plugin.write_text("")
        output = plugin
    before = output.read_bytes()
    arguments = [str(student), str(images), "--output", str(output), "--overwrite"]
    assert main([*arguments, "--plugins", str(plugin)] if way == "named" else arguments) == 2
    error = capsys.readouterr().err
    assert "--output must be another file than those that are read" in error and output.read_bytes() == before


def test_a_new_file_among_the_inputs_is_no_input(student, images):
    torch.manual_seed(0)
    for _ in range(2):
        assert main([str(student), str(images), "--output", str(images / "out.csv"), "--overwrite"]) == 0
