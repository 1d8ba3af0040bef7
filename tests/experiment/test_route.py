"""Distillation along the teacher's route: which snapshots there are, and when each teaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sftn_fast import cli, models, train
from sftn_fast.config import ConfigError, RouteConfig
from sftn_fast.experiment import run as experiment
from sftn_fast.tasks import Route

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --seeds [0]"
TINY += " --engine.checkpoint_every null"
TINY += " --teacher resnet14 --stages [teacher,sftn,distill] --epochs 4 --stage_epochs.distill 2"


def run(output: Path, *options: str) -> None:
    train.run(cli.parse([*TINY.split(), "--output", str(output), *options])[0])


def test_equal_intervals_end_at_the_finished_teacher():
    assert RouteConfig(anchors=4).epochs_of(240) == (60, 120, 180, 240)
    assert RouteConfig(anchors=3).epochs_of(4) == (1, 3, 4)
    assert RouteConfig(epochs=(2, 3)).epochs_of(4) == (2, 3)
    assert RouteConfig().epochs_of(4) == ()


def test_each_anchor_teaches_for_its_share():
    route = Route([Path("a"), Path("b"), Path("c")], epochs=6)
    assert [route.anchor(epoch).name for epoch in range(6)] == ["a", "a", "b", "b", "c", "c"]
    assert Route([Path("a"), Path("b")], epochs=1).anchor(0).name == "a"


def test_snapshots_of_both_teachers_teach_in_turn(tmp_path, monkeypatch):
    taught = []
    monkeypatch.setattr(models, "load", lambda folder, load=models.load: (taught.append(Path(folder)), load(folder))[1])
    run(tmp_path / "run", "--route.anchors", "2", "--stage_epochs.distill", "3")
    seed = tmp_path / "run" / "seed0"
    for kind in ("teacher", "sftn"):
        anchors = [seed / kind / "anchors" / f"epoch{epoch:04d}" for epoch in (2, 4)]
        assert [folder for folder in taught if "anchors" in folder.parts and kind in folder.parts] == anchors
        final, last = models.load(seed / kind).state_dict(), models.load(anchors[1]).state_dict()
        assert all(torch.equal(final[name], value) for name, value in last.items())
        assert not torch.equal(final["head.fc.weight"], models.load(anchors[0]).state_dict()["head.fc.weight"])


def test_a_teacher_that_left_no_snapshots_is_refused(tmp_path):
    run(tmp_path / "run", "--stages", "[teacher]")
    with pytest.raises(ConfigError, match=r"route needs .*epoch0002"):
        run(tmp_path / "run", "--stages", "[teacher,distill]", "--route.anchors", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--route.anchors 5", r"route\.anchors must be within the teacher's 4 epochs"),
        ("--route.epochs [2,9]", r"route\.epochs must be within the teacher's 4 epochs"),
        ("--route.epochs [3,2]", r"route\.epochs must be increasing"),
        ("--route.anchors 2 --route.epochs [1]", r"route\.anchors must be 0 beside"),
    ],
)
def test_routes_that_can_not_be(options, message):
    with pytest.raises(ConfigError, match=message):
        cli.parse([*TINY.split(), *options.split()])


def test_an_adopted_teacher_has_no_route():
    with pytest.raises(ConfigError, match="teacher_file names another"):
        experiment.plan(cli.parse([*TINY.split(), "--route.anchors", "2", "--teacher_file", "x"])[0])


def test_several_methods_in_one_run(tmp_path, capsys):
    run(tmp_path / "run", "--stages", "[teacher,distill]", "--methods", '["kd","at=10,kd=1"]', "--epochs", "1")
    names = sorted(path.parent.name for path in (tmp_path / "run").glob("seed0/*/result.json"))
    assert names == ["distill-teacher-at=10_kd=1", "distill-teacher-kd", "teacher"]
    assert "student of standard teacher, at=10_kd=1" in capsys.readouterr().out
