"""Classification of image files: the same logits as in the evaluation of the training, names, CSV, refusals."""

from __future__ import annotations

import csv
import importlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sftn_fast import __main__ as verbs
from sftn_fast import data, models
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.preprocessing import Preprocessing
from sftn_fast.export import main as export_main
from sftn_fast.predict.classifier import Classifier
from sftn_fast.predict.command import main
from sftn_fast.utils.checksummed import read_sealed
from sftn_fast.utils.text import printable


def digits() -> data.ImageData:
    return data.build(DataConfig("digits"), seed=0, batch_size=8, device="cpu")


def pixels_of(images: data.ImageData) -> torch.Tensor:
    return images.test.data.pixels


@pytest.fixture(scope="module")
def images() -> data.ImageData:
    return digits()


@pytest.fixture(scope="module")
def student(images: data.ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student")
    torch.manual_seed(0)
    network = models.build("resnet8", num_classes=10, in_channels=1)
    names = [f"digit {k}" for k in range(10)]
    models.save(network, folder, meta={"preprocessing": images.preprocessing.to_json(), "class_names": names})
    return folder


@pytest.fixture(scope="module")
def files(images: data.ImageData, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve test images as PNG files."""
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i:02d}.png" for i in range(12)]
    for path, pixels in zip(paths, pixels_of(images), strict=False):
        Image.fromarray(pixels[0].numpy()).save(path)
    return paths


def test_a_file_gets_the_logits_that_its_pixels_got_in_evaluation(images, student, files):
    batch = next(iter(images.test))
    with torch.no_grad():
        expected = models.load(student)(batch.images[: len(files)]).softmax(1)
    torch.testing.assert_close(Classifier(student).probabilities(files), expected, rtol=1e-5, atol=1e-6)


def test_a_decoded_data_set_is_preprocessed_as_its_loader_does(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for i, size in enumerate([(60, 40), (33, 90), (50, 50)]):
                Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / split / name / f"{i}.png")
    for loader in ("memory", "torchvision"):
        config = DataConfig("folder", root=str(tmp_path), image_size=16, loader=loader, workers=1)
        images = data.build(config, seed=0, batch_size=2, device="cpu")
        paths = sorted((tmp_path / "val").rglob("*.png"))
        ours = images.preprocessing.normalize(torch.stack([images.preprocessing.pixels(path) for path in paths]))
        assert torch.equal(ours, torch.cat([batch.images for batch in images.test]))
        assert images.class_names == ("cat", "dog")


def test_likeliest_classes_of_each_image(student, files, capsys):
    assert main([str(student), *map(str, files[:2])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith(f"{files[0]}: digit ")
    shares = [float(part.split()[-2]) for part in lines[0].partition(": ")[2].split(", ")]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)


def test_a_folder_becomes_a_csv(student, files, tmp_path, capsys):
    assert main([str(student), str(files[0].parent), "--top", "2"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["image", "class1", "probability1", "class2", "probability2"]
    assert [row[0] for row in rows[1:]] == [path.name for path in files]
    assert main([str(student), str(files[0].parent), "--top", "2", "--output", str(tmp_path / "out.csv")]) == 0
    assert list(csv.reader((tmp_path / "out.csv").open())) == rows


def test_through_the_verb(student, files, capsys):
    assert verbs.main(["predict", str(student), str(files[0])]) == 0
    assert capsys.readouterr().out.startswith(f"{files[0]}: digit ")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: ")
    return error


def test_a_damaged_image_stops_before_anything_is_written(student, files, tmp_path, capsys):
    folder, output = tmp_path / "images", tmp_path / "out.csv"
    folder.mkdir()
    Image.open(files[0]).save(folder / "a.png")
    (folder / "b.png").write_bytes(files[1].read_bytes()[:40])
    assert "b.png can't be decoded" in refused(capsys, str(student), str(folder), "--output", str(output))
    assert "b.png can't be decoded" in refused(capsys, str(student), str(folder / "a.png"), str(folder / "b.png"))
    assert not output.exists()


@pytest.fixture
def mixed(files: list[Path], tmp_path: Path) -> Path:
    """A folder with two good images, one of them nested, and four files that can't be decoded."""
    folder = tmp_path / "mixed"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(files[0].read_bytes())
    (folder / "sub" / "b.png").write_bytes(files[1].read_bytes())
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / "sub" / "truncated.jpg")
    content = (folder / "sub" / "truncated.jpg").read_bytes()
    (folder / "sub" / "truncated.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "gone.png").symlink_to("nowhere")
    return folder


UNDECODABLE = {"empty.png", "gone.png", "text.png", "truncated.jpg"}


def left_out(error: str) -> set[str]:
    lines = [line for line in error.splitlines() if line.startswith("left out: ")]
    assert all(" can't be decoded (" in line for line in lines)
    return {Path(line.removeprefix("left out: ").split(" can't be decoded (")[0]).name for line in lines}


def test_undecodable_images_are_left_out_if_asked_for(student, mixed, files, tmp_path, capsys):
    output = tmp_path / "out.csv"
    assert main([str(student), str(mixed), "--top", "1", "--output", str(output), "--skip-undecodable"]) == 3
    out, error = capsys.readouterr()
    assert (out, left_out(error), error.splitlines()[-1]) == ("", UNDECODABLE, f"2 images: {output}")
    rows = list(csv.reader(output.open()))
    assert [row[0] for row in rows] == ["image", "a.png", "sub/b.png"]
    # The figures are those of the images themselves, in whatever company they were decoded.
    good = [next(Classifier(student).predict([path], top=1))[0] for path in files[:2]]
    assert [row[1:] for row in rows[1:]] == [[each.name, f"{each.probability:.6f}"] for each in good]


def test_left_out_of_named_images(student, mixed, capsys):
    paths = [str(mixed / name) for name in ("a.png", "empty.png", "text.png")]
    assert main([str(student), *paths, "--skip-undecodable"]) == 3
    out, error = capsys.readouterr()
    assert left_out(error) == {"empty.png", "text.png"}
    assert [line.split(": ")[0] for line in out.splitlines()] == [str(mixed / "a.png")]


def test_nothing_to_leave_out_is_code_0(student, files, capsys):
    assert main([str(student), str(files[0]), "--skip-undecodable"]) == 0
    assert capsys.readouterr().err == ""


def test_all_undecodable(student, mixed, tmp_path, capsys):
    (mixed / "a.png").unlink()
    (mixed / "sub" / "b.png").unlink()
    output = tmp_path / "out.csv"
    error = refused(capsys, str(student), str(mixed), "--skip-undecodable", "--output", str(output))
    assert "none of 4 images is usable" in error and not output.exists()


def test_a_batch_without_usable_images(student, mixed, monkeypatch, capsys):
    monkeypatch.setattr("sftn_fast.predict.classifier.BATCH", 1)
    assert main([str(student), str(mixed), "--skip-undecodable"]) == 3
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("kind", ["RGBA", "L", "CMYK", "P", "I;16", "animated", "rotated"])
def test_every_kind_of_image_is_classified(kind, student, tmp_path, capsys):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    path, options = tmp_path / "x.png", {}
    if kind == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (40, 30), np.uint16))
    elif kind == "animated":
        path, options = tmp_path / "x.gif", {"save_all": True, "append_images": [image.rotate(90)]}
    elif kind == "rotated":
        path, options = tmp_path / "x.jpg", {"exif": Image.Exif()}
        options["exif"][0x0112] = 6
    else:
        path, image = tmp_path / ("x.tif" if kind == "CMYK" else "x.png"), image.convert(kind)
    image.save(path, **options)
    assert main([str(student), str(path)]) == 0
    out, error = capsys.readouterr()
    assert out.startswith(f"{path}: digit ") and error == ""


def test_an_exif_rotation_counts(student, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "stored.png", exif=exif)
    image.rotate(-90).save(tmp_path / "upright.png")
    image.save(tmp_path / "plain.png")
    stored, upright, plain = Classifier(student).probabilities(
        [tmp_path / f"{n}.png" for n in ("stored", "upright", "plain")]
    )
    torch.testing.assert_close(stored, upright)
    assert not torch.equal(stored, plain)


def test_ctrl_c_is_one_line_and_writes_nothing(student, files, tmp_path, capsys, monkeypatch):
    def interrupt(self: Preprocessing, path: Path) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(Preprocessing, "pixels", interrupt)
    output = tmp_path / "out.csv"
    assert main([str(student), str(files[0].parent), "--output", str(output)]) == 130
    assert capsys.readouterr() == ("", "stopped by SIGINT\n")
    assert not output.exists()


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_an_output_that_can_not_be_written_is_refused_before_any_work(verb, student, files, tmp_path, capsys):
    (tmp_path / "pipe.csv").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.csv")
    program, rest = (main, [str(files[0].parent)]) if verb == "predict" else (export_main, ["--format", "state_dict"])
    for output in (
        tmp_path / "none" / "x.csv",
        tmp_path,
        tmp_path / "pipe.csv",
        files[0] / "x.csv",
        Path("/dev/null"),
        Path("/proc/x.csv"),
        tmp_path / ("x" * 256),
    ):
        assert program([str(student), *rest, "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(("error: --output must be a file", "error: --output must be a path of at most"))
        assert error.count("\n") == 1 and ".tmp" not in error
    assert (tmp_path / "pipe.csv").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("verb", ["predict", "export"])
def test_an_existing_file_is_replaced_only_if_asked_to(verb, student, files, tmp_path, capsys):
    program, rest = (main, [str(files[0].parent)]) if verb == "predict" else (export_main, ["--format", "state_dict"])
    mine, given = tmp_path / "mine", [str(student), *rest, "--output"]
    mine.write_text("precious")
    assert program([*given, str(mine)]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --output must be a new file, because --overwrite is not given, got {str(mine)!r}\n"
    assert mine.read_text() == "precious"
    before = {path: path.read_bytes() for path in student.iterdir()}
    for name in before:
        assert program([*given, str(name), "--overwrite"]) == 2
        assert "must be another file than those of an exported network" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in student.iterdir()}
    assert program([*given, str(mine), "--overwrite"]) == 0
    assert mine.read_bytes() != b"precious"


def test_config_json_is_read_once(student, files, monkeypatch, capsys):
    read = []
    monkeypatch.setattr("sftn_fast.models.export.read_sealed", lambda path: (read.append(path), read_sealed(path))[1])
    assert main([str(student), str(files[0])]) == 0
    assert read == [student / "config.json"]


def test_refusals(student, files, tmp_path, capsys):
    assert "IMAGE must be a folder with images" in refused(capsys, str(student), str(tmp_path))
    assert "does not exist" in refused(capsys, str(student), str(tmp_path / "none.png"))
    assert "one folder" in refused(capsys, str(student), str(tmp_path), str(files[0]))
    assert "STUDENT must be the folder of an exported network" in refused(capsys, str(tmp_path), str(files[0]))
    for device in ("gpu", "cuda:x", "cuda:99"):
        assert "error: --device " in refused(capsys, str(student), str(files[0]), "--device", device)
    assert "--device must be auto, cpu, cuda or cuda:N, got 'gpu'" in refused(
        capsys, str(student), str(files[0]), "--device", "gpu"
    )
    assert "--top must be at least 1" in refused(capsys, str(student), str(files[0]), "--top", "0")
    assert "does not exist" in refused(capsys, str(student), "~nobody-here/x.png")
    assert "too long" in refused(capsys, str(student), "x" * 300)
    assert "with a folder of images only" in refused(capsys, str(student), str(files[0]), "--output", "x.csv")


def test_an_export_of_an_older_or_newer_version(student, files, tmp_path, capsys):
    models.save(models.load(student), tmp_path / "older")
    assert "an older version exported it" in refused(capsys, str(tmp_path / "older"), str(files[0]))
    models.save(models.load(student), tmp_path / "newer")
    config = json.loads((tmp_path / "newer" / "config.json").read_text())
    from sftn_fast.utils.checksummed import DIGEST, seal

    config = {key: value for key, value in config.items() if key != DIGEST} | {"format": 99}
    (tmp_path / "newer" / "config.json").write_text(seal(config))
    assert "update sftn_fast" in refused(capsys, str(tmp_path / "newer"), str(files[0]))


STRANGE = [None, True, [], {}, "x", -1, 0, 1.5, float("nan"), 10**400, [None], ["x"], [float("nan")], [0.5, 0.5]]
NUMBERS = [[-(10**7)], [10**400], [float("inf")], [True]]
WRONG = {
    "preprocessing": STRANGE,
    "crop": [*STRANGE, 2**15],
    "resize": [*STRANGE, 7, 2**15],
    "mean": [*STRANGE, *NUMBERS],
    "std": [*STRANGE, *NUMBERS, [0], [-1], [1e-300]],
    "white": [*(value for value in STRANGE if value not in (None, 1.5)), 0, -1, float("inf")],
    "other": STRANGE,
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_wrong_value_of_the_preprocessing_is_named(key, value):
    usual = {"resize": 8, "crop": 8, "mean": [0.5], "std": [1], "white": None}
    assert Preprocessing.from_json(usual | {"white": 1.5}, "x").white == 1.5
    with pytest.raises(ConfigError) as caught:
        Preprocessing.from_json(value if key == "preprocessing" else usual | {key: value}, "a/config.json")
    message, got = str(caught.value), printable(repr(value))
    if value == {} and key == "preprocessing":
        key, got = "crop", "None"
    assert message.startswith(f"a/config.json: {key if key == 'preprocessing' else f'preprocessing.{key}'} must be ")
    assert message.endswith(f", got {got}") and "\n" not in message and len(message) < 400


META = [
    *[("meta", value) for value in (None, [], "x", 1, float("nan"))],
    *[("class_names", value) for value in (-1, "0123456789", {}, [], [None] * 10, list("012"), float("nan"), True)],
    *[("preprocessing", value) for value in (None, [], {})],
]


@pytest.mark.parametrize("program", [main, export_main], ids=["predict", "export"])
@pytest.mark.parametrize(("key", "value"), META)
def test_a_wrong_value_of_config_json_is_one_line(program, key, value, student, files, tmp_path, capsys):
    config = json.loads((student / "config.json").read_text())
    del config["digest"]  # as in older versions, which wrote none
    (config if key == "meta" else config["meta"])[key] = value
    shutil.copy(student / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    argv = [str(files[0])] if program is main else ["--format", "state_dict"]
    assert program([str(tmp_path), *argv]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "config.json") in error and key in error and error.count("\n") == 1
    assert printable(repr(value)) in error or value == {}
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def test_verbs(capsys):
    assert verbs.main([]) == 2 and "usage: sftn VERB" in capsys.readouterr().out
    assert verbs.main(["--version"]) == 0 and capsys.readouterr().out.startswith("sftn_fast ")
    for verb in verbs.VERBS:
        assert verbs.main([verb, "--version"]) == 0 and capsys.readouterr().out.startswith("sftn_fast ")
    assert verbs.main(["trai"]) == 2
    assert "'trai' is not a verb of sftn; did you mean train?" in capsys.readouterr().err
    for verb, (module, _) in verbs.VERBS.items():
        assert callable(importlib.import_module(module).main), verb
        assert module == f"sftn_fast.{verb}"
