"""Runs that an earlier version wrote, in which keys had other names: they are resumed and reported as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftn_fast import report, train
from sftn_fast.engine.fingerprint import differences
from sftn_fast.experiment.settings import read_settings
from sftn_fast.utils.checksummed import read_sealed_text, seal, seal_text

TINY = "--config demo --data.name fake --data.train_size 32 --data.image_size 8 --optim.batch_size 16 --epochs 1"
TINY += " --seeds [0] --teacher resnet14 --stages [sftn]"


def run(output: Path, *options: str) -> int:
    return train.main([*TINY.split(), "--output", str(output), *options])


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.writer, "draw", lambda *_: ([], "no plot"))
        yield


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose files have the former name of sftn.branch_stages."""
    output = tmp_path_factory.mktemp("old") / "run"
    assert run(output, "--sftn.branch_stages", "[1]") == 0
    path = output / "seed0" / "sftn" / "result.json"
    result = json.loads(path.read_text())
    result["identity"]["sftn"]["stages"] = result["identity"]["sftn"].pop("branch_stages")
    path.write_text(seal(result))
    path = output / "config.yaml"
    text = "\n".join(read_sealed_text(path).splitlines()[1:-1])
    assert text.count("  branch_stages:") == 1
    path.write_text(seal_text(text.replace("  branch_stages:", "  stages:")))
    return output


def test_settings_have_todays_names(old: Path) -> None:
    assert "  stages:" in (old / "config.yaml").read_text()
    settings = read_settings(old)["sftn"]
    assert settings["branch_stages"] == [1] and "stages" not in settings


def test_a_finished_job_is_kept(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (old / "seed0" / "sftn" / "result.json").read_bytes()
    assert run(old, "--sftn.branch_stages", "[1]") == 0
    assert "not trained again" in capsys.readouterr().out
    assert (old / "seed0" / "sftn" / "result.json").read_bytes() == before


def test_another_setting_is_refused_by_its_new_name(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(old, "--sftn.branch_stages", "[1,2]") == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "sftn.branch_stages: [1] -> [1, 2]" in message


def test_a_report_reads_it(old: Path) -> None:
    assert [row.name for row in report.read_results(old)] == ["sftn"]
    assert "SFTN" in report.write(old)


def test_a_checkpoint_of_a_stopped_job_agrees() -> None:
    """The loop compares the settings in a checkpoint by this function."""
    before, now = ({"sftn": {"kl_weight": 3.0, name: [1]}, "seed": 0} for name in ("stages", "branch_stages"))
    assert differences(before, now) == []
    assert differences(before, {**now, "sftn": {"kl_weight": 3.0, "branch_stages": None}}) == [
        ("sftn.branch_stages", [1], None)
    ]
