"""Rivals of the student-friendly teacher: a teacher of an earlier epoch, and SoTeacher, in one table with it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from sftn_fast import cli, models, report, train
from sftn_fast.config import ConfigError
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.plan import plan

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --seeds [0]"
TINY += " --engine.checkpoint_every null --teacher resnet14 --epochs 4 --stage_epochs.distill 1 --engine.eval_every 1"
ALL = "--stages [teacher,early,soteacher,sftn,distill] --teacher_epoch 1"


def run(output: Path, options: str) -> int:
    return train.main([*TINY.split(), *options.split(), "--output", str(output)])


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *args: ([], "no plot"))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("rivals") / "run"
    assert run(output, f"{ALL} --methods [kd,at]") == 0
    return output


def test_the_early_teacher_is_the_standard_one_of_that_epoch(finished: Path) -> None:
    seed = finished / "seed0"
    early, snapshot, last = (
        models.load(path).state_dict()
        for path in (seed / "early", seed / "teacher/anchors/epoch0001", seed / "teacher")
    )
    assert all(torch.equal(early[name], value) for name, value in snapshot.items())
    assert not torch.equal(early["head.fc.weight"], last["head.fc.weight"])
    with (seed / "teacher" / "summary.csv").open() as file:
        first = next(csv.DictReader(file))
    result = json.loads((seed / "early" / "result.json").read_text())
    assert result["last"]["top1"] == pytest.approx(float(first["test_top1"])) and result["epochs"] == 0
    assert result["identity"]["teacher_epoch"] == 1


def test_all_teachers_are_in_one_table(finished: Path) -> None:
    text = (finished / "report.md").read_text()
    (heading,) = (line for line in text.splitlines() if line.startswith("| method"))
    assert [cell.strip() for cell in heading.split("|")[2:6]] == [
        "standard teacher",
        "early teacher",
        "SoTeacher",
        "SFTN teacher",
    ]
    for source in ("teacher", "early", "soteacher", "sftn"):
        assert (finished / "seed0" / f"distill-{source}-at" / "result.json").is_file()


def test_it_resumes_and_notices_another_epoch(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(finished, f"{ALL} --methods [kd,at]") == 0
    assert capsys.readouterr().out.count("finished before, not trained again") == 4 + 8
    assert run(finished, f"{ALL} --methods [kd,at] --teacher_epoch 2") == 2
    assert "teacher_epoch needs" in capsys.readouterr().err


def test_other_weights_of_soteacher_are_noticed(finished: Path) -> None:
    config = cli.parse([*TINY.split(), *ALL.split(), "--soteacher.lipschitz", "1", "--output", str(finished)])[0]
    with pytest.raises(ConfigError, match="soteacher"):
        experiment.prepare(config, finished)


def test_a_dry_run_knows_no_snapshot_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", f"{ALL} --dry-run") == 0
    assert "standard teacher resnet14 after epoch 1 of 4" in capsys.readouterr().out


def test_an_epoch_adds_the_stage() -> None:
    config = cli.parse([*TINY.split(), "--teacher_epoch", "3"])[0]
    names = [job.name for job in plan(config)]
    assert names == ["teacher", "early", "sftn", "student", "distill-teacher", "distill-early", "distill-sftn"]
    assert cli.parse([*TINY.split(), "--stages", "[teacher,early]"])[0].early_epoch == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--teacher_epoch 5", "teacher_epoch must be at most 4"),
        ("--teacher_epoch 0", "teacher_epoch must be"),
        ("--stages [early,distill]", "need the stage teacher"),
        ("--stages [teacher,early] --route.anchors 2", "route can't be combined"),
        ("--stage_epochs.early 2", "early is not trained"),
    ],
)
def test_what_can_not_be_is_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(cli.parse([*TINY.split(), *options.split()])[0])
