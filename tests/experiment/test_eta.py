"""What remains of an experiment, by what its finished stages took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftn_fast.config import Config
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.eta import TimeEstimate
from sftn_fast.utils.progress import duration


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def finish(root: Path, stage, seconds: float, epochs: int = 10) -> None:
    folder = root / f"seed{stage.seed}" / stage.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"seconds": seconds, "epochs": epochs}))


def test_finished_stages_tell_what_the_others_will_take(tmp_path, clock):
    config = Config(epochs=10, stage_epochs={"student": 20}, seeds=(0, 1))
    stages = experiment.plan(config)
    teacher, sftn, student, *_ = stages
    outlook = TimeEstimate(config, stages, tmp_path)
    assert outlook.begin(teacher) is None
    finish(tmp_path, teacher, 100)
    assert outlook.begin(sftn) == 7 * 100 + 2 * 200  # all at the teacher's rate, a student's epochs being twice as many
    finish(tmp_path, sftn, 300)
    assert outlook.begin(student) == (100 + 300) + 4 * 200 + 2 * 400  # for what was not seen yet, the mean of both
    finish(tmp_path, student, 50, epochs=20)
    left = TimeEstimate(config, stages, tmp_path).begin(stages[3])  # as after a restart
    assert left == pytest.approx((100 + 300 + 50) + 4 * 10 * (10 + 30 + 2.5) / 3)


def test_methods_are_told_apart_and_stages_run_side_by_side(tmp_path, clock):
    config = Config(epochs=10, seeds=(0,), methods=("kd", "crd"), stages=("teacher", "distill"), teacher_file="x")
    stages = experiment.plan(config)
    teacher, kd, crd = stages
    outlook = TimeEstimate(config, stages, tmp_path, processes=2)
    finish(tmp_path, teacher, 0)  # adopted: it says nothing of the others
    assert outlook.begin(kd) is None
    finish(tmp_path, kd, 40)
    assert outlook.begin(crd) == 20
    clock[0] += 30
    assert outlook.begin(teacher) == 5


def test_the_time_of_a_stopped_stage_counts(tmp_path, clock):
    config = Config(epochs=10, stages=("teacher",), seeds=(0, 1))
    first, second = stages = experiment.plan(config)
    finish(tmp_path, first, 40)
    (tmp_path / "seed1" / "teacher").mkdir(parents=True)
    (tmp_path / "seed1" / "teacher" / "seconds").write_text("15.000\n")
    assert TimeEstimate(config, stages, tmp_path).begin(second) == 25
    (tmp_path / "seed1" / "teacher" / "seconds").write_text("95.000\n")
    assert TimeEstimate(config, stages, tmp_path).begin(second) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.1, "about 1 s"), (98, "about 98 s"), (100, "about 2 min"), (3600, "about 60 min"), (7260, "about 2 h 1 min"),
     (100_000, "about 28 h")],
)  # fmt: skip
def test_an_estimate_claims_no_more_than_it_knows(seconds, words):
    assert duration(seconds) == words
