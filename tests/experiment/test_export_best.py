"""The best epoch in a run's folder, and the export of it or of the last one: the folder always says which."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sftn_fast import cli, data, engine, export, models, report, train
from sftn_fast.engine import loop
from sftn_fast.engine.checkpoint_policy import CheckpointPolicy
from sftn_fast.experiment import job as job_module
from sftn_fast.utils.checksummed import read_sealed, seal

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 3"
TINY += " --engine.checkpoint_every null"
TINY += " --seeds 0 --stages student --engine.threads 1 --engine.eval_every 1"
BEST = 2
evaluate = loop.evaluate


def steps_of(network: models.StagedNet) -> int:
    """The steps of the training so far, of which there are two an epoch."""
    return next(int(buffer) for name, buffer in network.named_buffers() if name.endswith("num_batches_tracked"))


def moody(network: models.StagedNet, *arguments: Any) -> dict[str, float]:
    """An evaluation by which epoch ``BEST`` is the best one, and not the last."""
    return evaluate(network, *arguments) | {"top1": {2: 30.0, 4: 60.0, 6: 50.0}[steps_of(network)]}


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
        patch.setattr(loop, "evaluate", moody)
        yield


def run(output: Path, *options: str) -> int:
    return train.main([*TINY.split(), "--output", str(output), *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("best") / "run"
    assert run(output) == 0
    return output


def best_of(output: Path) -> dict[str, bytes]:
    return models.read_files(output / "seed0" / "student" / "best")


def meta_of(folder: Path) -> dict[str, Any]:
    return models.read_config(folder)["meta"]


def result_of(output: Path) -> dict[str, Any]:
    return json.loads((output / "seed0" / "student" / "result.json").read_text())


def contents(output: Path) -> dict[str, bytes]:
    written = (path for path in output.rglob("*") if path.is_file() and path.name not in (".lock", "report.html"))
    return {str(path.relative_to(output)): path.read_bytes() for path in written}


def test_a_job_keeps_the_best_epoch_beside_the_last(finished: Path) -> None:
    job = finished / "seed0" / "student"
    assert meta_of(job / "best")["epoch"] == BEST and meta_of(job / "best")["top1"] == 60.0
    assert (meta_of(job)["epoch"], meta_of(job)["chosen_by"], meta_of(job)["top1"]) == (3, "last epoch", 50.0)
    assert "optimistic" not in meta_of(job)
    assert [steps_of(models.load(folder)) for folder in (job / "best", job)] == [4, 6]
    assert models.read_files(finished / "student") == models.read_files(job)


def test_a_choice_on_the_test_images_is_called_optimistic_wherever_it_is_shown(finished: Path, tmp_path: Path) -> None:
    chosen = {"chosen_by": "test images", "optimistic": True}
    assert result_of(finished)["best"].items() >= ({"epoch": BEST, "top1": 60.0} | chosen).items()
    assert meta_of(finished / "seed0" / "student" / "best").items() >= chosen.items()
    for name in ("report.md", "report.html"):
        text = (finished / name).read_text()
        assert "Top-1 best is that of the best epoch, chosen on the test images themselves, so its top-1 is" in text
        assert "The exported student" not in text
    assert (finished / "results.csv").read_text().count("test images") == 1
    other = shutil.copytree(finished, tmp_path / "other")
    assert "chosen on the test images themselves" in report.compare([finished, other])


def test_another_export_is_written_without_training(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, settings = contents(own), cli.load(own / "config.yaml")
    capsys.readouterr()
    for _ in range(2):
        assert run(own, "--export", "best") == 0
        said = capsys.readouterr().out
        assert "not trained again" in said and "epoch 2, the best one" in said
        assert models.read_files(own / "student") == best_of(own)
        assert cli.load(own / "config.yaml") == dataclasses.replace(settings, export="best")
        for text in (said, (own / "report.md").read_text(), (own / "report.html").read_text()):
            words = " ".join(text.split())
            assert "(student resnet8 alone) is of its best epoch, 2, top-1 60.00 %, chosen on the test images" in words
    assert report.write(own) and "is of its best epoch" in (own / "report.md").read_text()
    changed = {name for name in before if contents(own)[name] != before[name]}
    assert changed == {"student/config.json", "student/model.safetensors", "config.yaml", "report.md"}
    assert run(own, "--export", "last") == 0
    assert contents(own) == before


def test_a_validation_split_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert run(output, "--data.val_size", "16", "--export", "best") == 0
    meta = meta_of(output / "student")
    assert (meta["epoch"], meta["chosen_by"]) == (BEST, "validation split") and "optimistic" not in meta
    assert result_of(output)["best"]["chosen_by"] == "validation split"
    text = (output / "report.md").read_text()
    assert text.count("chosen on the validation split") == 2 and "optimistic" not in text + capsys.readouterr().out


def test_the_accuracy_is_that_of_exactly_those_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert run(tmp_path, "--export", "best") == 0
    config = cli.load(tmp_path / "config.yaml")
    test = data.build(config.data, seed=0, batch_size=16, device="cpu").test
    measured = evaluate(models.load(tmp_path / "student"), test, engine.Layout(torch.device("cpu")))
    assert measured["top1"] == meta_of(tmp_path / "student")["top1"] == result_of(tmp_path)["best"]["top1"]


class Killed(BaseException):
    pass


def dying(call: Callable[..., Any], *, at: int, before: bool) -> Callable[..., Any]:
    calls: list[int] = []

    def wrapped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if before and len(calls) == at:
            raise Killed
        result = call(*arguments, **options)
        if len(calls) == at:
            raise Killed
        return result

    return wrapped


@pytest.mark.parametrize(
    ("owner", "name", "at", "before"),
    [
        (job_module.JobRunner, "_write_weights", 2, True),  # the best epoch is over, and nothing tells of it
        (job_module.JobRunner, "_write_weights", 2, False),  # best/ is newer than every checkpoint
        (CheckpointPolicy, "after_epoch", 2, False),
        (job_module.JobRunner, "_write_weights", 3, True),  # the job ends
    ],
)
def test_killed_and_resumed_it_has_the_same_best_epoch(
    owner: type, name: str, at: int, before: bool, tmp_path: Path, finished: Path
) -> None:
    output = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, dying(getattr(owner, name), at=at, before=before))
        with pytest.raises(Killed):
            run(output)
    kept = meta_of(output / "seed0" / "student" / "best")["epoch"]
    assert kept == (1 if before and at == 2 else BEST)
    assert run(output) == 0
    assert best_of(output) == best_of(finished)
    assert models.read_files(output / "student") == models.read_files(finished / "student")


def test_a_stopped_run_that_lost_it_has_it_again(tmp_path: Path, finished: Path) -> None:
    output = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointPolicy, "after_epoch", dying(CheckpointPolicy.after_epoch, at=2, before=False))
        with pytest.raises(Killed):
            run(output)
    shutil.rmtree(output / "seed0" / "student" / "best")
    assert run(output) == 0
    assert best_of(output) == best_of(finished)


def test_a_disk_that_is_full_for_a_while_costs_a_warning(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, calls = job_module.replace_files, []

    def full(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) <= 2:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(job_module, "replace_files", full)
    assert run(tmp_path / "run") == 0
    assert caplog.text.count("best can't be written (No space left on device); training continues") == 2
    assert best_of(tmp_path / "run") == best_of(finished)


def as_older(output: Path) -> None:
    """Have the finished job be one of a version that kept no best epoch."""
    path = output / "seed0" / "student" / "result.json"
    result = read_sealed(path)
    result["files"] = {name: value for name, value in result["files"].items() if not name.startswith("best/")}
    result["best"] = {key: result["best"][key] for key in ("epoch", "top1", "ce")}
    path.write_text(seal(result))
    shutil.rmtree(output / "seed0" / "student" / "best")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_older_run_has_none_to_export(own: Path, dry: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    as_older(own)
    before = contents(own)
    capsys.readouterr()
    assert run(own, "--export", "best", *dry) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "export must be last for seed0/student" in error and "got 'best'" in error
    assert contents(own) == before


def test_an_older_run_is_reported_and_exported_as_before(own: Path) -> None:
    as_older(own)
    assert run(own) == 0
    assert "chosen on the test images themselves" in (own / "report.md").read_text()
    assert not (own / "seed0" / "student" / "best").exists()


def test_a_damaged_export_is_named_in_the_report(own: Path) -> None:
    (own / "student" / "config.json").write_text("{")
    assert "config.json is damaged" in report.write(own)


def test_the_disk_that_a_dry_run_counts(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    job = finished / "seed0" / "student"
    files = [*job.glob("checkpoints/*/state.pt"), *job.glob("**/model.safetensors")]
    written = sum(path.stat().st_size for path in files)
    words = next(line for line in said.splitlines() if line.startswith("disk: "))
    counted = float(words.split()[1]) * {"kB": 1e3, "MB": 1e6}[words.split()[2]]
    assert len(files) == 4 and counted == pytest.approx(written, rel=0.2)


@pytest.mark.parametrize("place", ["student", "seed0/student", "seed0/student/best"])
def test_what_was_made_from_replaced_weights_goes_with_them(place: str, own: Path, caplog: Any) -> None:
    assert export.main([str(own / place), "--format", "state_dict"]) == 0
    made = own / place / "deployed.safetensors"
    assert run(own) == 0 and made.is_file()
    if place == "student":
        assert run(own, "--export", "best") == 0
    else:
        assert run(own, "--resume", "force", "--optim.lr", "0.01") == 0
    assert not made.exists()
    moved = list((own / "replaced").rglob("deployed.safetensors"))
    assert len(moved) == (place != "student")  # a job keeps it beside its old weights
    assert ("deployed.safetensors removed from" in caplog.text) == (place == "student")
