"""Accuracy by class: counted, written, checked and shown; and the warning if one class is predicted for all images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from finished_jobs import add_job

from sftn_fast import report
from sftn_fast.config import Config, DataConfig, EngineConfig, OptimConfig
from sftn_fast.data import build
from sftn_fast.engine import Layout, count_by_class
from sftn_fast.experiment import class_accuracy
from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.plan import Job
from sftn_fast.models import StagedNet, load
from sftn_fast.report import by_class

NAMES = ("cat", "<b>dog</b>", "a|b\nc")


def add_counts(folder: Path, seed: int, name: str, right: list[int], predicted: list[int] | None = None) -> None:
    add_job(folder, name, seed, 50.0)
    job = folder / f"seed{seed}" / name
    result = json.loads((job / "result.json").read_text())
    result["by_class"] = class_accuracy.write(job, [10, 20, 0], right, predicted or [10, 10, 10], NAMES)
    (job / "result.json").write_text(json.dumps(result))


def test_accuracies_are_means_over_the_seeds(tmp_path: Path) -> None:
    add_counts(tmp_path, 0, "student", [10, 5, 0])
    add_counts(tmp_path, 1, "student", [5, 5, 0])
    text = report.write(tmp_path)
    assert "Hardest classes for the student alone: '<b>dog</b>' 25.0 % of 20, 'cat' 75.0 % of 10" in text
    markdown = (tmp_path / "report.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]
    assert ["cat", "10", "75.0"] in rows
    assert "| &lt;b>dog&lt;/b> " in markdown and r"| a\|b\nc " in markdown and "<b>" not in markdown
    page = (tmp_path / "report.html").read_text()
    assert "<td>&lt;b&gt;dog&lt;/b&gt;</td><td>20</td><td>25.0</td>" in page


def test_changed_counts_are_named_and_not_shown(tmp_path: Path) -> None:
    add_counts(tmp_path, 0, "student", [10, 5, 0])
    file = tmp_path / "seed0" / "student" / class_accuracy.FILE
    file.write_text(file.read_text().replace("5", "9"))
    text = report.write(tmp_path)
    assert f"student alone, seed 0: no accuracy by class: {file} was changed after the training" in text
    assert "Accuracy by class" not in (tmp_path / "report.md").read_text()
    file.unlink()
    assert f"{file} is missing" in report.write(tmp_path)


def test_a_result_of_an_older_version_has_none_and_needs_none(tmp_path: Path) -> None:
    add_job(tmp_path, "student", 0, 50.0)
    assert "by class" not in report.write(tmp_path)


def test_one_class_for_all_images_is_the_first_thing_said(tmp_path: Path) -> None:
    add_counts(tmp_path, 0, "student", [0, 20, 0], predicted=[0, 30, 0])
    add_counts(tmp_path, 1, "student", [10, 5, 0])
    first = report.write(tmp_path).split("\n- ")[1]
    assert first.startswith(
        "warning: student alone, seed 0: it predicts class '<b>dog</b>' for all test images and has learned nothing"
    )
    assert "warning: student alone, seed 0" in (tmp_path / "report.html").read_text()


def test_a_thousand_classes_stay_beside_the_result(tmp_path: Path) -> None:
    add_job(tmp_path, "student", 0, 50.0)
    job = tmp_path / "seed0" / "student"
    result = json.loads((job / "result.json").read_text())
    right = [number % 50 for number in range(1000)]
    result["by_class"] = class_accuracy.write(job, [50] * 1000, right, [50] * 1000, ())
    (job / "result.json").write_text(json.dumps(result, indent=2))
    assert len((job / "result.json").read_text()) < 3000
    report.write(tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert "the 20 hardest of 1000 classes" in markdown and "| 950   | 50     | 0.0" in markdown
    page = (tmp_path / "report.html").read_text()
    assert "The 200 hardest of 1000 classes" in page
    lines = page[page.index("<h2>Accuracy by class") :].split("</tbody>")[0].count("<tr><td>")
    assert lines == by_class.PAGE
    with (job / class_accuracy.FILE).open() as file:
        assert len(list(csv.DictReader(file))) == 1000


@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_a_job_counts_what_its_accuracy_says(amp: str, tmp_path: Path) -> None:
    run = tiny_job(tmp_path, amp=amp, lr=0.05)
    run.finish()
    result = json.loads((run.folder / "result.json").read_text())
    with (run.folder / class_accuracy.FILE).open() as file:
        lines = list(csv.DictReader(file))
    images, right = (sum(int(line[key]) for line in lines) for key in ("images", "right"))
    assert images == run.data.test.num_samples
    assert 100 * right / images == pytest.approx(result["last"]["top1"])
    assert result["by_class"]["only_class"] is None

    layout = Layout(torch.device("cpu"), torch.float32)
    counts = count_by_class(load(run.folder), run.data.test, layout, run.data.num_classes)
    logits = torch.cat([load(run.folder)(batch.images) for batch in run.data.test])
    target = torch.cat([batch.target for batch in run.data.test])
    chosen = logits.argmax(1)
    for number in range(run.data.num_classes):
        assert counts.images[number] == int((target == number).sum())
        assert counts.right[number] == int(((target == number) & (chosen == number)).sum())
        assert counts.predicted[number] == int((chosen == number).sum())


def test_a_job_that_learned_nothing_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_job(tmp_path)
    task = run.task()
    assert isinstance(task.model, StagedNet)
    with torch.no_grad():
        for parameter in task.model.head.parameters():
            parameter.zero_()
        task.model.head.fc.bias[3] = 1.0
    monkeypatch.setattr(run, "task", lambda: task)
    run.finish()
    assert (
        "warning: it predicts class 'pattern 3' for all test images and has learned nothing" in capsys.readouterr().out
    )


def tiny_job(folder: Path, *, amp: str = "fp32", lr: float = 1e-6) -> JobRunner:
    config = Config(
        student="resnet8",
        stages=("student",),
        epochs=2,
        output=str(folder),
        data=DataConfig(name="fake", train_size=64, image_size=8),
        optim=OptimConfig(lr=lr, batch_size=16, schedule="constant"),
        engine=EngineConfig(device="cpu", amp=amp),
    )
    device = torch.device("cpu")
    return JobRunner(
        config, Job("student", 0), folder, device, build(config.data, seed=0, batch_size=16, device=device)
    )
