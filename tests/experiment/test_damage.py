"""Files of finished runs that are damaged in every way: named, mended, or left out, never believed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from sftn_fast import cli, data, engine, models, report, train
from sftn_fast.config import Config, ConfigError
from sftn_fast.data import ImageData
from sftn_fast.experiment import exported_student, settings
from sftn_fast.experiment import run as experiment
from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.plan import Job, plan
from sftn_fast.report.results import find_results
from sftn_fast.utils import checksummed, run_files
from sftn_fast.utils.checksummed import DamagedError

TINY = ["--config", "demo", "--data.name", "fake", "--data.train_size", "32", "--data.image_size", "8"]
TINY += ["--engine.checkpoint_every", "null"]
TINY += ["--optim.batch_size", "16", "--epochs", "1", "--seeds", "[0]", "--teacher", "resnet8", "--student", "resnet8"]
TINY += ["--engine.log_every", "1", "--engine.threads", "1"]
STAGES = ["--stages", "[teacher, sftn, student, distill, collaborate]", "--distill", "ab", "--route.anchors", "1"]
JOBS = ("teacher", "sftn", "student", "distill-teacher", "collaborate")


def tiny(output: Path, *options: str) -> Config:
    return cli.parse([*TINY, "--output", str(output), *options])[0]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of job, among them one with an initialisation, with anchors and with a peer."""
    output = tmp_path_factory.mktemp("damage") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
        train.run(tiny(output, *STAGES))
    return output


@pytest.fixture(scope="module")
def images(finished: Path) -> ImageData:
    return data.build(whole_plan()[0].data, seed=0, batch_size=16, device=torch.device("cpu"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, its checkpoints included."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@cache
def whole_plan() -> tuple[Config, dict[str, Job]]:
    config = tiny(Path("unused"), *STAGES)
    return config, {stage.name: stage for stage in plan(config)}


def job_of(run: Path, images: ImageData, name: str) -> JobRunner:
    """One job of the run, to be done as the same command would."""
    config, stages = whole_plan()
    return JobRunner(config, stages[name], run, torch.device("cpu"), images)


def figures(results: Any) -> dict[str, Any]:
    """What a report shows of each job, but for the time."""
    keys = ("last", "best", "agreement", "kl", "parameters", "network", "epochs", "peers")
    return {result["name"]: {key: result.get(key) for key in keys} for result in results}


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_digit(path: Path) -> None:
    """Make the first digit behind a colon, or any, another one."""
    content = path.read_bytes()
    place = (re.search(rb"(?<=: )\d", content) or re.search(rb"\d", content)).start()
    path.write_bytes(content[:place] + (b"7" if content[place : place + 1] != b"7" else b"3") + content[place + 1 :])


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped bit": flip_bit,
    "changed digit": change_digit,
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "deleted": Path.unlink,
    "folder": make_folder,
}
REASONS = ("changed digit", "half", "deleted", "folder")
"""One damage of each way to notice it: the checksum, the form, a missing file, an error of reading."""
FILES = [
    f"{job}/{file}"
    for job in JOBS
    for file in ("result.json", *run_files.NETWORK, *run_files.LOGS, run_files.CLASSES, "seconds")
]
FILES += [f"{job}/anchors/epoch0001/{file}" for job in ("teacher", "sftn") for file in run_files.NETWORK]
FILES += [f"{job}/best/{file}" for job in JOBS for file in run_files.NETWORK]
FILES += [f"sftn/branch/{file}" for file in run_files.NETWORK]
FILES += [f"collaborate/peer1/{file}" for file in run_files.NETWORK]
FILES += [f"distill-teacher/init-ab/{file}" for file in run_files.LOGS]


def test_the_attack_is_on_every_file_of_the_jobs(finished: Path) -> None:
    found = {path.relative_to(finished / "seed0").as_posix() for path in (finished / "seed0").rglob("*")}
    written = {path for path in found if (finished / "seed0" / path).is_file() and "/checkpoints/" not in path}
    assert {path for path in written if not path.startswith("distill-sftn/")} == set(FILES)


@pytest.mark.parametrize("file", [file for file in FILES if "/best/" not in file or file.startswith("student/")])
def test_a_damaged_file_of_a_finished_job(
    run: Path, images: ImageData, file: str, caplog: pytest.LogCaptureFixture, finished: Path
) -> None:
    """Half of the damages to each file of one job; one to those of the others, which notice it by the same code."""
    path, job = run / "seed0" / file, file.split("/")[0]
    true, weights = figures(find_results(finished).results), models.load(run / "seed0" / job).state_dict()
    best = models.read_files(run / "seed0" / job / "best")
    number = FILES.index(file)
    for kind in [*DAMAGE][number % 2 :: 2] if job == "student" else [REASONS[number % len(REASONS)]]:
        damage = DAMAGE[kind]
        caplog.clear()
        intact = path.read_bytes()
        damage(path)
        first = find_results(run)
        shown = figures(first.results)
        assert shown == {name: true[name] for name in shown}, kind
        assert set(shown) >= set(true) - {job}, kind
        job_of(run, images, job).finish()
        named = (*first.notes, caplog.text)
        if file.endswith("/seconds"):  # holds nothing that is shown of a finished job
            assert shown == true
            shutil.rmtree(path) if path.is_dir() else None
            path.write_bytes(intact)
            continue
        # What was deleted may also be told by its job's being called unfinished.
        assert any(file in text or (kind == "deleted" and job in text) for text in named), (kind, named)
        assert models.read_files(run / "seed0" / job / "best") == best, kind
        assert figures(find_results(run).results) == true, kind
        again = models.load(run / "seed0" / job).state_dict()
        assert all(torch.equal(again[name], weights[name]) for name in weights), kind
        if "/anchors/" in file:  # can't be had again: named each time, and refused where it is needed
            assert file in caplog.text
            with pytest.raises((DamagedError, ConfigError), match="epoch0001"):
                job_of(run, images, f"distill-{job}").route()
            if path.is_dir():
                path.rmdir()
            path.write_bytes(intact)
        assert find_results(run).notes == (), kind


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", run_files.NETWORK)
def test_a_damaged_exported_student_is_exported_again(
    run: Path, name: str, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    stages = list(whole_plan()[1].values())
    intact = models.read_files(run / "student")
    (run / "student" / "transfer-stl10.json").write_text("somebody's")
    damage(run / "student" / name)
    exported_student.export_student(exported_student.exported_job(stages), run, "last")
    assert models.read_files(run / "student") == intact
    assert name in caplog.text and "exported again" in caplog.text
    assert (run / "student" / "transfer-stl10.json").read_text() == "somebody's"
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == [".lock"]
    before = (run / "student" / name).stat().st_mtime_ns
    exported_student.export_student(exported_student.exported_job(stages), run, "last")
    assert (run / "student" / name).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", run_files.NETWORK)
def test_an_intact_exported_student_is_never_replaced_by_a_damaged_one(
    run: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    intact = models.read_files(run / "student")
    damage(run / "seed0" / "collaborate" / name)
    with pytest.raises(DamagedError, match=f"left unchanged: .*{name}"):
        exported_student.export_student(exported_student.exported_job(list(whole_plan()[1].values())), run, "last")
    assert models.read_files(run / "student") == intact


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", run_files.NETWORK)
def test_a_teacher_damaged_when_distilling_begins_is_made_again(
    run: Path, images: ImageData, name: str, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    intact = models.load(run / "seed0" / "teacher").state_dict()
    damage(run / "seed0" / "teacher" / name)
    job_of(run, images, "distill-teacher").finish()
    assert f"seed0/teacher/{name}" in caplog.text
    again = models.load(run / "seed0" / "teacher").state_dict()
    assert all(torch.equal(again[key], intact[key]) for key in intact)
    assert find_results(run).notes == ()


@pytest.mark.parametrize("left", ["no checkpoint", "damaged ones"])
def test_a_damaged_job_without_a_checkpoint_is_trained_again_or_refused(
    run: Path, images: ImageData, left: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = run / "seed0" / "student" / "checkpoints"
    flip_bit(run / "seed0" / "student" / "model.safetensors")
    if left == "damaged ones":
        for path in checkpoints.glob("*/state.pt"):
            flip_bit(path)
        with pytest.raises(engine.CheckpointError, match=r"no valid checkpoint is left in .*remove .*seed0/student "):
            job_of(run, images, "student").finish()
        assert find_results(run).notes != ()
        return
    shutil.rmtree(checkpoints)
    job_of(run, images, "student").finish()
    assert "made again with the whole job, since it has no checkpoint" in caplog.text
    assert figures(find_results(run).results) == figures(find_results(finished).results)


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_configuration_is_named_and_written_again(
    run: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    config, path = whole_plan()[0], run / "config.yaml"
    damage(path)
    found = find_results(run)
    if path.exists():  # without one, the report is of an unknown configuration, as it says
        assert any("config.yaml" in note for note in found.notes)
    assert settings.read_settings(run) == {}
    there = path.exists()
    experiment._write_settings(config, list(whole_plan()[1].values()), run)
    assert there == ("config.yaml" in caplog.text)
    assert find_results(run).notes == ()
    assert settings.read_settings(run)["student"] == config.student


def test_what_a_report_writes_is_not_relied_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
    text = report.write(run)
    for name in ("report.md", "report.html", "results.csv"):
        for damage in DAMAGE.values():
            damage(run / name)
            assert report.write(run) == text
            assert (run / name).stat().st_size > 100


def test_a_run_of_an_older_version_is_reported_and_gone_on_with(
    run: Path, images: ImageData, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    true = figures(find_results(run).results)
    for path in [*run.rglob("result.json"), *run.rglob("config.json")]:
        content = json.loads(path.read_text())
        path.write_text(json.dumps({key: content[key] for key in content if key not in ("digest", "files")}))
    for path in run.rglob("seconds"):
        path.unlink()
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text("".join(lines[1:-1]))
    found = find_results(run)
    assert figures(found.results) == true
    assert found.notes == ("6 of 6 results have no checksums: they are from an older version",)
    for job in JOBS:
        job_of(run, images, job).finish()
    assert capsys.readouterr().out.count("not trained again") == len(JOBS)
    seconds = json.loads((run / "seed0" / "student" / "result.json").read_text())["seconds"]
    flip_bit(run / "seed0" / "student" / "model.safetensors")
    job_of(run, images, "student").finish()
    assert "seed0/student/model.safetensors" in caplog.text
    assert find_results(run).notes == ("5 of 6 results have no checksums: they are from an older version",)
    assert json.loads((run / "seed0" / "student" / "result.json").read_text())["seconds"] >= seconds


def test_only_names_that_a_run_gives_are_read(run: Path) -> None:
    true = figures(find_results(run).results)
    shutil.copytree(run / "seed0", run / "seed0.bak")
    shutil.copytree(run / "seed0", run / "seed00")
    shutil.copytree(run / "seed0", run / "seed1")
    shutil.copytree(run / "seed0" / "teacher", run / "seed0" / "teacher (copy)")
    shutil.copytree(run / "seed0" / "distill-sftn", run / "seed0" / "distill-sftn-old")
    found = find_results(run)
    assert figures(found.results) == true and len(found.results) == len(true)
    for name in ("seed0.bak", "seed00", "teacher (copy)", "distill-sftn-old", "seed1/teacher", "seed1/student"):
        assert any(name in note and "left out" in note for note in found.notes), name


def test_what_files_hold_is_shown_and_not_obeyed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
    path = run / "seed0" / "student" / "result.json"
    result = json.loads(path.read_text())
    evil = "<script>alert(1)</script>![p](http://x/)\x1b[2J" + 1000 * "n"
    changed = result | {
        "network": evil,
        "environment": {evil: evil},
        "identity": result["identity"] | {"distill": evil},
    }
    del changed["digest"]
    path.write_text(checksummed.seal(changed))
    text = report.write(run)
    for shown in (text, *((run / name).read_text() for name in ("report.md", "report.html", "results.csv"))):
        assert "\x1b" not in shown and 500 * "n" not in shown
    for name in ("report.md", "report.html"):
        assert "<script>alert" not in (run / name).read_text()
    assert "![p](" not in (run / "report.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"last": None}, {"last": {"top1": "high", "epoch": 1}}, {"best": []}, {"seed": "0"}, {"name": 5}, {"kl": "x"},
        {"network": None}, {"epochs": True}, {"seconds": None}, {"identity": 3}, {"seed": 7}, {"name": "sftn"},
    ],
)  # fmt: skip
def test_a_result_of_odd_content_is_left_out(run: Path, change: dict[str, Any]) -> None:
    path = run / "seed0" / "teacher" / "result.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in ("digest", "files")}
    path.write_text(json.dumps(content | change))
    found = find_results(run)
    assert "teacher" not in {result["name"] for result in found.results}
    assert any("seed0/teacher/result.json" in note for note in found.notes)


@pytest.mark.parametrize("content", ["5", "teacher: [1]", "a: [", "\x00", "data: 7", "- 1", 3000 * "[" + 3000 * "]"])
def test_a_configuration_of_odd_content_is_left_out(run: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
    (run / "config.yaml").write_text(content)
    notes = find_results(run).notes
    assert any("config.yaml" in note and "what depends on it is left out" in note for note in notes)
    assert notes[-1] in report.write(run)


def test_nothing_that_can_be_read_is_one_line_with_the_reason(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in run.glob("seed0/*/result.json"):
        path.write_text("{")
    assert report.main([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "no finished training" in error
    assert re.search(r"seed0/\w+/result.json is damaged", error)  # some are named, the others counted
