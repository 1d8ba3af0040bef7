"""Published numbers: which run they are held against, and that they are what the recipes say."""

from __future__ import annotations

import re

import pages
import pytest

from sftn_fast import cli
from sftn_fast.report.published import (
    IMAGENET_PAIRS,
    PAIRS,
    REPDISTILLER,
    SSKD,
    STUDENTS,
    TEACHERS,
    TORCHVISION,
    note,
    of_method,
    of_network,
)

RESNET = cli.to_dict(cli.parse(["--config", "resnet32x4_resnet8x4"])[0])


IMAGENET = {"teacher": "resnet34", "student": "resnet18", "epochs": 100, "data": {"name": "imagenet"}}


def numbers(table):
    return [line.split() for line in table.strip().splitlines()]


@pytest.mark.parametrize("table", [REPDISTILLER, SSKD])
def test_every_line_has_a_number_or_a_dash_for_every_pair(table):
    for name, *row in numbers(table):
        assert len(row) == len(PAIRS) == 13, name
        assert all(number == "-" or 55 < float(number) < 80 for number in row), name


def test_there_is_a_recipe_for_every_pair_with_the_same_numbers():
    for teacher, student in (*PAIRS, *IMAGENET_PAIRS):
        data = "cifar100" if (teacher, student) in PAIRS else "imagenet"
        path = cli.recipe_path(f"{data}_{teacher}_{student}")
        config, _ = cli.parse(["--config", path.stem])
        assert (config.teacher, config.student) == (teacher, student)
        header = " ".join(line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#"))
        settings = cli.to_dict(config)
        found = [of_network("teacher", settings), of_network("student", settings), of_method(config.distill, settings)]
        expected = [each.top1 for each in found if each]
        assert [float(number) for number in re.findall(r"([\d.]+) %", header)] == expected
        assert len(expected) == (2 if teacher == "resnet50" else 3)
    assert {teacher for teacher, _ in PAIRS} == TEACHERS.keys()
    assert {student for _, student in PAIRS} == STUDENTS.keys()


@pytest.mark.parametrize(
    ("method", "top1", "source", "epoch"),
    [
        ("kd", 73.33, "RepDistiller", "last"),
        ("kd=0.9", 73.33, "RepDistiller", "last"),
        ("crd", 75.51, "RepDistiller", "last"),
        ("ce=1,attention=1000", 73.44, "RepDistiller", "last"),
        ("at,kd=1", 74.26, "SSKD", "best"),
        ("hint,kd=1", 74.31, "SSKD", "best"),
        ("sskd", 76.20, "SSKD", "best"),
    ],
)
def test_settings_that_were_published(method, top1, source, epoch):
    found = of_method(method, RESNET)
    assert (found.top1, found.source) == (top1, source)
    result = {"last": {"top1": "last"}, "best": {"top1": "best"}}
    assert found.column.value(result) == epoch


@pytest.mark.parametrize(
    "method",
    ["kd=0.5", "kd:temperature=2", "kd,ce=1", "at=500", "at,kd=2", "at,rkd", "dkd", "nst,kd=1", "sskd,kd=1", "novel"],
)
def test_settings_that_were_not(method):
    assert of_method(method, RESNET) is None


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 100},
        {"stage_epochs": {"sftn": 60}},
        {"teacher": "vgg16"},
        {"teacher": "vgg13"},
        {"data": {"name": "cifar10"}},
        {"data": {"name": "cifar100", "train_size": 1000}},
        {"data": {"name": "cifar100", "image_size": 64}},
    ],
)
def test_other_runs_are_held_against_nothing(change):
    assert of_method("kd", RESNET) is not None
    assert of_method("kd", RESNET | change) is None
    assert of_network("teacher", RESNET | change) is None


def test_the_usual_size_may_be_said():
    for settings, size in ((RESNET, 32), (IMAGENET, 224)):
        assert of_network("student", settings | {"data": {**settings["data"], "image_size": size}}) is not None


def test_a_pair_that_the_readme_leaves_out():
    settings = RESNET | {"teacher": "resnet110", "student": "resnet20"}
    assert of_method("at,kd=1", settings) is None
    assert of_method("at", settings).top1 == 70.22
    assert of_network("sftn", settings) is None


# ImageNet


def test_torchvisions_own_figures():
    torchvision_models = pytest.importorskip("torchvision.models")
    assert {name for pair in IMAGENET_PAIRS for name in pair} == TORCHVISION.keys()
    for name, top1 in TORCHVISION.items():
        meta = torchvision_models.get_model_weights(name).IMAGENET1K_V1.meta
        assert top1 == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.005)


@pytest.mark.parametrize(
    ("method", "top1"),
    [("kd=0.5:temperature=1,ce=0.5", 71.37), ("crd", 70.93), ("kd", None), ("at", None), ("crd,kd=1", None)],
)
def test_methods_on_imagenet(method, top1):
    found = of_method(method, IMAGENET)
    assert (found and found.top1) == top1
    assert of_method(method, IMAGENET | {"teacher": "resnet50", "student": "resnet34"}) is None
    assert of_method(method, IMAGENET | {"epochs": 90}) is None


def test_networks_alone_on_imagenet():
    assert [of_network(kind, IMAGENET).top1 for kind in ("teacher", "student")] == [73.31, 69.76]
    assert "torchdistill" in note(IMAGENET) and "RepDistiller" in note(RESNET)
    for file, expected in (("torchvision:IMAGENET1K_V1", 73.31), ("torchvision:IMAGENET1K_V2", None), ("a.pth", None)):
        found = of_network("teacher", IMAGENET | {"teacher_file": file})
        assert (found and found.top1) == expected


def test_the_results_page_has_the_published_numbers_of_each_pair():
    kd, crd = (dict(zip(PAIRS, row, strict=True)) for name, *row in numbers(REPDISTILLER) if name in ("kd", "crd"))
    page = (pages.ROOT / "docs" / "results.md").read_text()
    for teacher, student in PAIRS:
        alone = f"{TEACHERS[teacher]:.2f} | {STUDENTS[student]:.2f}"
        published = f"{alone} | {kd[teacher, student]} | {crd[teacher, student]}"
        assert f"| `sftn train --config {teacher}_{student}` | {published} |" in page
