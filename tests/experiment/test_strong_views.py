"""Runs with a method that sees strong views: beside others, from files, and what is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision.transforms.v2")
from PIL import Image

from sftn_fast import data, report, train
from sftn_fast.cli import parse
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.experiment import every_method
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.trial_step import try_jobs

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 1"
TINY += " --seeds [0] --teacher resnet14 --student resnet8 --engine.checkpoint_every null"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.writer, "draw", lambda *args: ([], "no plot"))


def test_a_matrix_with_other_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is beside it: the students of other methods are the same bits."""
    results = {}
    for methods in ("kd", "kd mlld"):
        output = tmp_path / methods.replace(" ", "-")
        options = f"{TINY} --stages [teacher,sftn,distill] --methods {methods} --output {output}"
        assert train.main(options.split()) == 0, capsys.readouterr().err
        found = output.glob("seed0/distill-*/result.json")
        written = {path.parent.name: json.loads(path.read_text()) for path in found}
        assert not any(result["diverged"] for result in written.values()), "a sum over both views is no divergence"
        results[methods] = {name: result["last"] for name, result in written.items()}
    single, both = results.values()
    names = ["distill-sftn-kd", "distill-sftn-mlld", "distill-teacher-kd", "distill-teacher-mlld"]
    assert sorted(both) == names
    assert all(both[name] == single[name] for name in names if name.endswith("kd"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--methods kd mlld --cache_teacher true",
            "cache_teacher must be false with mlld, since mlld needs more of the teacher than its logits",
        ),
        ("--distill mlld:per_row=maybe", "per_row must be true or false"),
        ("--distill mlld:temperature=0", "temperature must be a finite number greater than 0"),
    ],
)
def test_refused_on_the_command_line(
    options: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*TINY.split(), *options.split(), "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def from_files(root: Path) -> data.ImageData:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(root / split / name / f"{number}.png")
    config = DataConfig(name="folder", root=str(root), image_size=8, loader="torchvision", workers=1)
    return data.build(config, seed=0, batch_size=4, device="cpu")


def test_images_without_strong_views_are_refused_before_a_teacher_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = from_files(tmp_path)
    options = "--config demo --teacher resnet14 --student resnet8 --seeds 0 --stages teacher distill --methods"
    checked, _ = parse([*options.split(), "kd", "mlld"])
    try_jobs(checked, experiment.plan(checked), images)
    monkeypatch.setattr(images.train.decoder, "name", "dali")
    with pytest.raises(
        ConfigError, match=r"data\.loader must be torchvision or memory for a method that sees strong vi"
    ):
        try_jobs(checked, experiment.plan(checked), images)
    _, lines = every_method.expand(parse([*options.split(), "all"])[0], images)
    assert [line for line in lines if "mlld" in line and "data.loader must be torchvision" in line]


def test_networks_on_views_of_their_own_from_files(tmp_path: Path) -> None:
    images = from_files(tmp_path).with_views(2)
    assert next(images.train.epoch(0)).images.shape == torch.Size([4, 2, 3, 8, 8])
