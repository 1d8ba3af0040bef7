"""docs/troubleshooting.md has lines that the program really prints: each is provoked here."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pages
import pytest
import torch

from sftn_fast import models, ops, report, train
from sftn_fast.experiment import class_accuracy
from sftn_fast.ops import _backend, _capability

PAGE = (pages.ROOT / "docs" / "troubleshooting.md").read_text()
LINES = re.findall(r"^\| `(.+?)` \|", PAGE, flags=re.MULTILINE)
TINY = ["--data.name", "fake", "--data.train_size", "64", "--data.image_size", "8", "--epochs", "1", "--seeds", "[0]"]
TINY += ["--optim.batch_size", "16", "--stages", "[student]", "--output", "out"]


def trained(*options: str) -> Callable[[], object]:
    return lambda: train.main([*TINY, *options])


def folder_of(*classes: str, val: tuple[str, ...] | None = None) -> Callable[[], object]:
    """Training on a folder with an image in each of the classes' folders; "" lies in the split itself."""

    def make() -> None:
        image = pytest.importorskip("PIL.Image")
        for split, names in (("train", classes), ("val", classes if val is None else val)):
            for name in names:
                path = Path("images", split, name.removeprefix("empty "))
                path.mkdir(parents=True, exist_ok=True)
                if not name.startswith("empty "):
                    image.new("RGB", (8, 8)).save(path / "0.png")
        train.main([*TINY, "--data.name", "folder", "--data.root", "images", "--data.train_size", "null"])

    return make


def other_network() -> None:
    models.save(models.build("resnet14", num_classes=10), "given")
    train.main([*TINY, "--stages", "[distill]", "--teacher", "resnet20", "--teacher_file", "given/model.safetensors"])


def one_class() -> None:
    result = {"by_class": class_accuracy.write(Path(), [5, 5], [5, 0], [10, 0], ("cat", "dog"))}
    print(f"warning: {class_accuracy.only_class(result)}")


def finished_twice() -> None:
    train.main([*TINY, "--student", "resnet8"])
    train.main([*TINY, "--student", "resnet8", "--resume", "never"])


def without_kernels() -> None:
    _backend._warned.clear()
    with ops.backend("auto"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_backend, "_kernels", {})
        with pytest.warns(UserWarning) as warned:
            ops.kd_loss(torch.randn(2, 3), torch.randn(2, 3))
    print(warned[0].message)


def unknown_level() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFTN_CPU_CAPABILITY", "avx1024")
        patch.setattr(_capability, "available", lambda: ("default",))
        with pytest.warns(UserWarning) as warned:
            _capability.choose()
    print(warned[0].message)


def without_matplotlib() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        train.main([*TINY, "--student", "resnet8"])


TRIGGERS = {
    "no files": trained("--data.name", "cifar10", "--data.root", "data", "--data.train_size", "null"),
    "no folder": trained("--data.name", "folder", "--data.root", "nowhere"),
    "a flat split": folder_of(""),
    "other classes": folder_of("cat", "dog", val=("cat",)),
    "an empty class": folder_of("cat", "empty dog"),
    "no image size": trained("--data.name", "folder", "--data.root", ".", "--data.image_size", "null"),
    "few images": trained("--data.name", "digits", "--data.train_size", "2000"),
    "no GPU": trained("--engine.device", "cuda:7"),
    "no teacher": trained("--stages", "[distill]"),
    "a pair refused": trained("--stages", "[teacher, distill]", "--distill", "fsp", "--teacher", "wrn_16_2"),
    "no file": trained("--stages", "[distill]", "--teacher_file", "nowhere.pth"),
    "another network": other_network,
    "never": finished_twice,
    "no run": lambda: report.main(["."]),
    "not finite": trained("--optim.lr", "1e30", "--engine.log_every", "1"),
    "one class": one_class,
    "no kernels": without_kernels,
    "no such level": unknown_level,
    "no matplotlib": without_matplotlib,
}


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_the_page_has_the_line(trigger, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    TRIGGERS[trigger]()
    printed = " ".join("".join(capfd.readouterr()).split())
    expected = pattern(LINES[list(TRIGGERS).index(trigger)])
    assert re.search(expected, printed), printed


def pattern(line: str) -> str:
    return ".*?".join(re.escape(part.strip()) for part in line.split("...")).replace(r"\ ", r"\s+")


def test_every_line_is_provoked():
    assert len(LINES) == len(TRIGGERS)


def test_deployment_names_the_normalisation_of_the_data_sets():
    page = (pages.ROOT / "docs" / "deployment.md").read_text()
    sources = "".join(path.read_text() for path in (pages.ROOT / "sftn_fast" / "data").rglob("*.py"))
    rows = re.findall(r"^\| (`\w+`.*) \| ([\d., ]+) \| ([\d., ]+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 6
    for names, mean, deviation in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf'"{name}"', sources)
        for values in (mean, deviation):
            assert f"({values}" in sources, (names, values)
