"""A teacher that came from a file and does not fit the images is told apart from one that does."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sftn_fast import cli, engine, models, train
from sftn_fast.config import ConfigError
from sftn_fast.experiment import teacher_check

CLASSES = 12
LAYOUT = engine.Layout(torch.device("cpu"))


class Answers(nn.Module):
    """Gives the class that the image's first pixel names, under another number."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = torch.tensor(numbers)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(self.numbers[x[:, 0, 0, 0].long()], CLASSES).float()


def images(**more: object) -> SimpleNamespace:
    target = torch.arange(60) % CLASSES
    pictures = target[:, None, None, None].expand(-1, 3, 4, 4).float()
    batch = SimpleNamespace(images=pictures, target=target)
    return SimpleNamespace(name="toys", num_classes=CLASSES, test=[batch], **more)


def doubts(numbers: list[int], **more: object) -> list[str]:
    network = Answers(numbers)
    data = images(**more)
    top1 = engine.evaluate(network, data.test, LAYOUT)["top1"]
    return teacher_check.doubts(network, top1, data, LAYOUT)


def as_text(count: int = CLASSES) -> list[int]:
    """Where the folders 1 .. count stand when they are put in order as text."""
    order = sorted(map(str, range(1, count + 1)))
    return [order.index(str(i)) for i in range(1, count + 1)]


def test_a_teacher_that_fits():
    assert doubts(list(range(CLASSES))) == []


def test_folders_in_another_order():
    (line,) = doubts(as_text())
    assert "the classes are in another order" in line and "100.00 %" in line
    (line,) = doubts(as_text(), class_names=[str(i) for i in range(1, CLASSES + 1)])
    assert "images of class 1 (2) for class 4" in line


def test_half_of_the_classes_in_another_order():
    (line,) = doubts([*range(6), 7, 8, 9, 10, 11, 6])
    assert "the classes are in another order" in line


def test_one_answer_to_everything():
    (line,) = doubts([3] * CLASSES)
    assert "top-1 8.33 % is near chance, 8.33 %" in line and "almost all images for class 3" in line


def test_no_rule_in_the_answers():
    (line,) = doubts([1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
    assert "near chance" in line or "another order" in line


TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--optim.batch_size", "16", "--epochs", "1", "--seeds", "[0]", "--teacher", "resnet14"]


def run(output, *options):
    train.run(cli.parse([*TINY, "--output", str(output), *options])[0])


def result_of(output, stage):
    return json.loads((output / "seed0" / stage / "result.json").read_text())


def test_an_adopted_teacher_at_chance_is_warned_of(tmp_path, capsys):
    net = models.build("resnet14", num_classes=10)
    nn.init.zeros_(net.head.fc.weight)
    nn.init.zeros_(net.head.fc.bias).data[3] = 9
    models.save(net, tmp_path / "teacher", meta={})
    run(tmp_path / "run", "--teacher_file", str(tmp_path / "teacher" / "model.safetensors"), "--stages", "[teacher]")
    said = capsys.readouterr().out
    assert "warning: top-1" in said and "is near chance, 10.00 %" in said and "almost all images for class 3" in said
    (doubt,) = result_of(tmp_path / "run", "teacher")["doubts"]
    assert doubt in (tmp_path / "run" / "report.md").read_text()


def test_class_names_in_another_order_are_refused(tmp_path):
    net = models.build("resnet14", num_classes=3)
    models.save(net, tmp_path / "teacher", meta={"class_names": ["1", "10", "2"]})
    for file in ("teacher", "teacher/model.safetensors"):
        data = images(class_names=["1", "2", "10"])
        with pytest.raises(ConfigError, match=r"teacher_file: .* class 1 is '10' there and '2' here"):
            teacher_check.check_class_names("teacher_file", str(tmp_path / file), data)
        data.name = "folder"
        with pytest.raises(ConfigError, match=r"set data\.class_order to name, or train it again"):
            teacher_check.check_class_names("teacher_file", str(tmp_path / file), data)
        teacher_check.check_class_names("teacher_file", str(tmp_path / file), images(class_names=["1", "10", "2"]))
        teacher_check.check_class_names("teacher_file", str(tmp_path / file), images(class_names=["a", "b", "c"]))
        teacher_check.check_class_names("teacher_file", str(tmp_path / file), images())


def test_a_training_that_diverged_is_never_silent(tmp_path, capsys):
    run(tmp_path / "run", "--stages", "[teacher,student]", "--optim.lr", "100", "--epochs", "2")
    said = capsys.readouterr().out
    for stage in ("teacher", "student"):
        line = result_of(tmp_path / "run", stage)["diverged"]
        assert line.startswith("training diverged: ") and f"warning: {line}" in said
    report = (tmp_path / "run" / "report.md").read_text()
    assert report.count("training diverged: ") == 2


def test_a_training_that_went_well_is_not_warned_of(tmp_path, capsys):
    run(tmp_path / "run", "--stages", "[student]", "--data.train_size", "128", "--epochs", "4")
    assert "warning" not in capsys.readouterr().out
    assert result_of(tmp_path / "run", "student")["diverged"] is None
