"""The experiments of bench/evidence: their images, their measures, their recipes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.evidence import choices, garment_pairs, teachers
from sftn_fast import cli
from sftn_fast.config import DataConfig
from sftn_fast.data import build
from sftn_fast.data.source import Images, Source
from sftn_fast.train import main as train

HERE = Path(teachers.__file__).parent


def garments(of_class: int) -> Images:
    """Return images [N, 1, 4, 4] of ten classes in turn, each in one shade, which is its number."""
    numbers = torch.arange(10 * of_class, dtype=torch.uint8)
    pixels = numbers.view(-1, 1, 1, 1).repeat(1, 1, 4, 4)
    return Images(pixels, numbers.long() % 10)


def test_each_half_is_of_its_class_and_no_garment_occurs_twice():
    made = garment_pairs.pairs(garments(20), per_class=1, seed=0)
    assert len(made) == 100
    shown = []
    for (left, right), images in made.items():
        assert images.shape == (1, 4, 4)
        halves = images[0, 0, 0].item(), images[0, 0, 3].item()
        assert [number % 10 for number in halves] == [left, right]
        shown += halves
    assert sorted(shown) == list(range(200))


def test_half_the_width_is_the_mean_of_neighbours():
    pixels = torch.tensor([[[0, 2, 4, 5], [255, 255, 1, 0]]], dtype=torch.uint8)
    assert garment_pairs.half_width(pixels).tolist() == [[[1, 4], [255, 0]]]  # halves round to even


def test_too_few_garments_are_refused():
    with pytest.raises(ValueError, match="2 images a class need 40 garments of each kind, there are 39"):
        garment_pairs.pairs(Images(*(part[:-1] for part in vars(garments(40)).values())), per_class=2, seed=0)


def test_the_folder_has_its_classes_in_the_order_of_the_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(garment_pairs, "load_fashion_mnist", lambda _: source(garments(20)))
    garment_pairs.write(tmp_path / "pairs", per_class=1, test_per_class=1)
    config = DataConfig(name="folder", root=str(tmp_path / "pairs"), loader="memory", grey=True, image_size=8)
    images = build(config, seed=0, batch_size=2, device="cpu")
    assert (images.num_classes, images.in_channels, images.num_train) == (100, 1, 100)
    assert images.class_names[46] == "46 Coat and Shirt"
    (file,) = (tmp_path / "pairs" / "train" / images.class_names[46]).iterdir()
    pixels = np.asarray(Image.open(file))
    assert (pixels[0, 0] % 10, pixels[0, -1] % 10) == (4, 6)


def source(images: Images) -> Source:
    return Source(
        name="garments",
        num_classes=10,
        train=images,
        test=images,
        mean=(0.5,),
        std=(0.5,),
        crop_padding=0,
        flip=False,
        class_names=garment_pairs.CLASSES,
    )


@pytest.mark.parametrize("recipe", sorted(HERE.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(recipe):
    assert "sftn" in cli.load(recipe).stages


@pytest.mark.parametrize("name", choices.CHOICES)
def test_every_choice_differs_from_the_defaults(name):
    config, base = (
        cli.parse(["--config", str(choices.RECIPE), *options])[0] for options in (choices.options(name), [])
    )
    assert (config == base) == (name == choices.BASE)


def test_teachers_are_measured_as_the_report_measures_students(tmp_path):
    options = ["--config", "demo", "--teacher", "resnet14", "--stages", "teacher,student,distill", "--seeds", "0"]
    options += ["--methods", "kd", "--epochs", "2", "--data.train_size", "64", "--output", str(tmp_path / "run")]
    assert train(options) == 0
    (row,) = teachers.measure(tmp_path / "run", "kd")
    with (tmp_path / "run" / "results.csv").open() as file:
        rows = {each["name"]: each for each in csv.DictReader(file)}
    assert row["test"]["accuracy"] == pytest.approx(float(rows["teacher"]["top1_last"]), abs=0.01)
    assert row["cka"][-1] == pytest.approx(float(rows["distill-teacher-kd"]["cka"]), abs=1e-3)
    assert 0 < row["train"]["soft_entropy"] < np.log2(10)


def test_choices_are_compared_with_the_defaults_by_seed():
    def run(teacher: list[float], student: list[float]) -> choices.Run:
        by_seed = {"top1_last": dict(enumerate(student)), "agreement": {0: 90.0}, "kl": {0: 0.1}}
        return {choices.TEACHER: {"top1_last": dict(enumerate(teacher))}, choices.STUDENT: by_seed}

    better = run([91.0, 92.0, 93.0], [81.0, 82.5, 83.0])
    page = choices.table({choices.BASE: run([90.0, 91.0, 92.0], [80.0, 81.0, 82.0]), "KL weight 1": better})
    *_, base, other = page.splitlines()
    assert "| 91.00 ± 1.00 | - | 81.00 ± 1.00 | - | - |" in base
    assert "| 92.00 ± 1.00 | +1.00 ± 0.00 | 82.17 ± 1.04 | +1.17 ± 0.29 | 0.020 | 90.0 | 0.100 | 3 |" in other
