"""Networks from files that a run begins with: what fits is said, else nothing is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sftn_fast import cli, models, train
from sftn_fast.experiment import run as experiment

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "16", "--data.image_size", "8"]
TINY += ["--optim.batch_size", "8", "--epochs", "1", "--seeds", "[0]", "--teacher", "resnet14", "--student", "resnet8"]
TINY += ["--optim.lr", "1e-12"]


def options(tmp_path: Path, *more: str) -> list[str]:
    return [*TINY, "--output", str(tmp_path / "run"), *more]


def network(num_classes: int, name: str = "resnet14", in_channels: int = 3) -> models.StagedNet:
    torch.manual_seed(7)
    return models.build(name, num_classes=num_classes, in_channels=in_channels)


@pytest.fixture
def fits(tmp_path) -> tuple[int, int]:
    """Classes and channels of the run's images."""
    config = cli.parse(options(tmp_path))[0]
    images = experiment._images_to_look_at(config, 0)
    return images.num_classes, images.in_channels


def test_a_start_of_other_classes_is_taken_but_for_its_head(fits, tmp_path, capsys):
    classes, channels = fits
    start = network(1000, in_channels=channels)
    torch.save({"state_dict": {f"model.{name}": t for name, t in start.state_dict().items()}}, tmp_path / "t.ckpt")
    assert train.main(options(tmp_path, "--stages", "[sftn]", "--sftn.init", str(tmp_path / "t.ckpt"))) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "t.ckpt: " in line]
    assert len(lines) == 1
    kept = "loaded all but the classifier (head.fc.weight, head.fc.bias): the file has 1000 classes, this network"
    assert f"{kept} {classes}" in lines[0]
    assert "removed the prefix 'model.'" in lines[0]
    trained = models.load(tmp_path / "run" / "seed0" / "sftn")
    weight = "stages.0.0.conv1.weight"
    assert torch.allclose(trained.state_dict()[weight], start.state_dict()[weight], atol=1e-6)


def test_a_teacher_of_other_classes_is_refused_with_what_to_do(fits, tmp_path, capsys):
    torch.save(network(1000, in_channels=fits[1]).state_dict(), tmp_path / "t.pth")
    assert train.main(options(tmp_path, "--stages", "[distill]", "--teacher_file", str(tmp_path / "t.pth"))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: teacher_file: ") and "Traceback" not in error
    assert "all but the classifier does: sftn.init accepts such a file" in error


@pytest.mark.parametrize("fault", ["network", "NaN"])
def test_a_start_that_can_not_be_used_is_refused_before_the_teacher_is_trained(fault, fits, tmp_path, capsys):
    net = network(fits[0], "resnet8" if fault == "network" else "resnet14", fits[1])
    with torch.no_grad():
        net.head.fc.weight[0, 0] = float("nan") if fault == "NaN" else 0
    torch.save(net.state_dict(), tmp_path / "t.pth")
    assert train.main(options(tmp_path, "--stages", "[teacher,sftn]", "--sftn.init", str(tmp_path / "t.pth"))) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: sftn.init: ")
    assert ("does not fit resnet14" if fault == "network" else "head.fc.weight has values that are NaN") in printed.err
    assert not (tmp_path / "run" / "seed0" / "teacher").exists()
