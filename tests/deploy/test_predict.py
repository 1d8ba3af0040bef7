"""Classification of image files: the same logits as in the evaluation of the training, names, CSV, refusals."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sftn_fast import __main__ as verbs
from sftn_fast import data, models
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.preprocessing import Preprocessing
from sftn_fast.predict.classifier import Classifier
from sftn_fast.predict.command import main


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


def test_refusals(student, files, tmp_path, capsys):
    assert "IMAGE must be a folder with images" in refused(capsys, str(student), str(tmp_path))
    assert "does not exist" in refused(capsys, str(student), str(tmp_path / "none.png"))
    assert "one folder" in refused(capsys, str(student), str(tmp_path), str(files[0]))
    assert "STUDENT must be the folder of an exported network" in refused(capsys, str(tmp_path), str(files[0]))
    assert "--top must be at least 1" in refused(capsys, str(student), str(files[0]), "--top", "0")
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


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        {"resize": 8, "crop": 9, "mean": [0.5], "std": [1]},
        {"resize": 8, "crop": 8, "mean": [0.5], "std": [0]},
        {"resize": 8, "crop": 8, "mean": "x", "std": [1]},
        {"resize": True, "crop": 8, "mean": [0], "std": [1]},
    ],
)
def test_preprocessing_of_a_strange_file_is_refused(wrong):
    with pytest.raises(ConfigError, match="preprocessing must have resize, crop, mean and std"):
        Preprocessing.from_json(wrong)


def test_verbs(capsys):
    assert verbs.main([]) == 2 and "usage: sftn VERB" in capsys.readouterr().out
    assert verbs.main(["--version"]) == 0 and capsys.readouterr().out.startswith("sftn_fast ")
    assert verbs.main(["trai"]) == 2
    assert "'trai' is not a verb of sftn; did you mean train?" in capsys.readouterr().err
    for verb, (module, _) in verbs.VERBS.items():
        assert callable(importlib.import_module(module).main), verb
        assert module == f"sftn_fast.{verb}"
