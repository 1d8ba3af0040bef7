"""A run with averages: figures and folders beside those of the weights, teachers that teach by theirs, and exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sftn_fast import cli, data, models, report, train
from sftn_fast.config import ConfigError
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.plan import Job

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 2"
TINY += " --seeds 0 --engine.threads 1 --engine.eval_every 1 --teacher resnet14 --teacher_epoch 2"
TINY += " --stages teacher student distill --ema.decay 0.9"
DISTILLED = "distill-teacher"


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
        yield


def run(output: Path, *options: str) -> int:
    return train.main([*TINY.split(), "--output", str(output), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("averages") / "run"
    assert run(output) == 0
    return output


def result_of(output: Path, name: str) -> dict[str, Any]:
    return json.loads((output / "seed0" / name / "result.json").read_text())


def test_both_figures_are_recorded(finished: Path) -> None:
    for name in ("teacher", "student", DISTILLED):
        result, folder = result_of(finished, name), finished / "seed0" / name
        assert {"ema/model.safetensors", "ema/config.json"} <= result["files"].keys()
        assert result["ema"]["epoch"] == 2 and result["ema"]["ce"] != result["last"]["ce"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if line["kind"] == "epoch"][-1]
        assert (result["ema"]["top1"], result["ema"]["ce"]) == (last["test_ema_top1"], last["test_ema_ce"])
        meta = models.read_config(folder / "ema")["meta"]
        assert (meta["top1"], meta["epoch"], meta["ema_decay"]) == (last["test_ema_top1"], 2, 0.9)
    rows = list(csv.DictReader((finished / "results.csv").open()))
    assert {row["name"] for row in rows if row["top1_ema"]} == {"teacher", "student", DISTILLED, "distill-early"}


def test_a_teacher_teaches_by_its_average(finished: Path) -> None:
    averaged = models.read_config(finished / "seed0" / "teacher" / "ema")["sha256"]
    assert averaged != models.read_config(finished / "seed0" / "teacher")["sha256"]
    assert result_of(finished, DISTILLED)["identity"]["teacher"] == averaged
    assert result_of(finished, DISTILLED)["compared_with"] == averaged
    said = " ".join((finished / "report.md").read_text().split())
    top1 = result_of(finished, "teacher")["ema"]["top1"]
    assert f"The standard teacher teaches by the average (EMA) of its weights, top-1 {top1:.2f} %" in said
    config = cli.load(finished / "config.yaml")
    images = data.build(config.data, seed=0, batch_size=16, device=torch.device("cpu"))
    runner = JobRunner(config, Job("distill", 0, "teacher"), finished, torch.device("cpu"), images)
    saved = models.load(finished / "seed0" / "teacher" / "ema").state_dict()
    taught = runner.finished("teacher").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in taught.items())
    # The early teacher is the average after that epoch, which here is the last.
    early = models.load(finished / "seed0" / "early").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in early.items())


def test_the_average_is_exported_without_training(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(own, "--export", "ema") == 0
    said = capsys.readouterr().out
    assert said.count("not trained again") == 5 and "the average of its weights" in said
    assert "has the average (EMA) of its weights after epoch 2" in (own / "report.md").read_text()
    source = own / "seed0" / "distill-early" / "ema"
    assert models.read_files(own / "student") == models.read_files(source)
    assert run(own) == 0
    assert "ema_decay" not in models.read_config(own / "student")["meta"]


@pytest.mark.parametrize("fault", ["flipped", "removed"])
def test_a_damaged_average_is_made_again(own: Path, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    path = own / "seed0" / "teacher" / "ema" / "model.safetensors"
    before = path.read_bytes()
    path.unlink()
    if fault == "flipped":
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert run(own) == 0
    assert "made again from the last checkpoint" in caplog.text
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", ["--ema.decay 0.8", "--ema.warmup false", "--ema.networks students"])
def test_another_average_of_the_teacher_is_another_training(finished: Path, options: str, monkeypatch) -> None:
    monkeypatch.setattr(experiment, "_try_jobs", lambda *args: None)
    config = cli.parse([*TINY.split(), "--output", str(finished), *options.split()])[0]
    with pytest.raises(ConfigError, match=r"seed0/teacher.*ema\.(decay|warmup): .* -> "):
        experiment.prepare(config, finished)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--export ema", r"export must be last or best without ema\.decay for students"),
        ("--export ema --ema.decay 0.9 --ema.networks teachers", r"export must be last or best without ema\.decay for"),
        ("--ema.warmup false", r"ema\.warmup must be left out without ema\.decay"),
        ("--ema.networks students", r"ema\.networks must be left out without ema\.decay"),
        ("--ema.decay 1", r"ema\.decay must be a finite number at least 0 and less than 1, got 1\.0"),
        ("--ema.networks none", r"ema\.networks must be one of all, teachers, students"),
    ],
)
def test_what_can_not_be_averaged_is_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cli.parse(["--config", "demo", *options.split()])
