"""Tables and plots from result files."""

from __future__ import annotations

import csv
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sftn_fast import report
from sftn_fast.config import ConfigError
from sftn_fast.report.results import Row
from sftn_fast.report.table import cost_sentence, images_sentences
from sftn_fast.utils import atomic
from sftn_fast.utils.text import counted


def result(name: str, seed: int, top1: float, kl: float | None = None) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "network": "wrn_16_2" if name in ("teacher", "sftn") else "resnet8",
        "parameters": 1000,
        "epochs": 3,
        "last": {"top1": top1, "ce": 0.5, "epoch": 3},
        "best": {"top1": top1 + 1, "ce": 0.5, "epoch": 2},
        "agreement": None if kl is None else 90.0,
        "kl": kl,
        "seconds": 1.0,
        "images_per_second": 10.0,
        "data_wait_share": 0.1,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    results = [
        result("distill-sftn", 0, 92.0, 0.10),
        result("distill-sftn", 1, 94.0, 0.20),
        result("distill-teacher", 0, 91.0, 0.30),
        result("distill-teacher", 1, 91.0, 0.50),
        result("teacher", 0, 95.0),
        result("teacher", 1, 97.0),
        result("distill-sftn", 10, 90.0, 0.3),
    ]
    for each in results:
        path = tmp_path / f"seed{each['seed']}" / each["name"] / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(each))
    return tmp_path


def test_rows_stand_in_the_order_of_the_experiment(folder: Path) -> None:
    rows = report.read_results(folder)
    assert [row.name for row in rows] == ["teacher", "distill-teacher", "distill-sftn"]
    assert [each["seed"] for each in rows[2].results] == [0, 1, 10]


def test_mean_and_sample_deviation() -> None:
    assert report.mean_and_deviation([95.0, 97.0], 2) == "96.00 ± 1.41"
    assert report.mean_and_deviation([95.0], 1) == "95.0"
    assert report.mean_and_deviation([], 1) == "-"


def test_gain_pairs_the_seeds_that_both_have(folder: Path) -> None:
    rows = report.read_results(folder)
    # Seed 0: 92 - 91, seed 1: 94 - 91; seed 10 has no partner.
    sentence = report.gain(rows, "distill-sftn", "distill-teacher")
    assert sentence is not None and "+2.00 ± 1.41 points, 95 % CI -10.71 to +14.71 (paired by seed, n = 2)" in sentence
    assert report.gain(rows, "distill-sftn", "student") is None


@pytest.mark.usefixtures("rendered")
def test_everything_is_written(folder: Path) -> None:
    text = report.write(folder)
    assert "| standard teacher" in text and "96.00 ± 1.41" in text and "0.4000 ± 0.1414" in text
    assert "96.00 ± 1.41" in (folder / "report.md").read_text()
    assert str(folder / "report.png") in text
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 7
    assert {line["top1_last"] for line in lines if line["name"] == "teacher"} == {"95.0", "97.0"}


@pytest.mark.parametrize("name", ["report.md", "report.html", "report.png", "results.csv"])
def test_a_full_disk_leaves_the_older_file(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_synced = atomic.write_synced

    def fail_at_name(path: Path, content: bytes) -> None:
        if name in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_synced(path, content)

    monkeypatch.setattr(atomic, "write_synced", fail_at_name)
    (folder / name).write_bytes(b"older")
    with pytest.raises(OSError, match="No space left"):
        report.write(folder)
    assert (folder / name).read_bytes() == b"older"
    assert not list(folder.glob(".*"))


def test_a_missing_matplotlib_costs_the_plot_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = report.write(folder)
    assert "no plot" in text and "pip install matplotlib" in text and "96.00 ± 1.41" in text
    assert not (folder / "report.png").exists()
    assert "report.png" not in (folder / "report.md").read_text()


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(folder)]) == 0
    assert "student of SFTN teacher" in capsys.readouterr().out
    empty = tmp_path / "empty"
    empty.mkdir()
    assert report.main([str(empty)]) == 2
    assert "no finished training" in capsys.readouterr().err
    with pytest.raises(SystemExit) as refused:
        report.main([])
    assert refused.value.code == 2
    assert "FOLDER" in capsys.readouterr().err
    with pytest.raises(ConfigError):
        report.read_results(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    for wrong in ("none", "file", "file/x", "x" * 300):
        for argv in ([str(tmp_path / wrong)], [str(folder), str(tmp_path / wrong)], [""]):
            capsys.readouterr()
            assert report.main(argv) == 2
            assert capsys.readouterr().err.count("\n") == 1


def test_fewer_images_for_students_are_told() -> None:
    def rows(**counts: int | None) -> list[Row]:
        names = {name.replace("_", "-"): count for name, count in counts.items()}
        data = {name: {"identity": {"data": {"num_train": count}}} for name, count in names.items()}
        return [Row(name, "resnet8", (result(name, 0, 90.0) | data[name],)) for name in names]

    (sentence,) = images_sentences(rows(teacher=1000, sftn=1000, student=50, distill_sftn=50))
    assert sentence == "Students, alone or taught, learned from 50 of the teachers' 1,000 training images"
    assert images_sentences(rows(teacher=50, student=50)) == []
    assert images_sentences(rows(student=50)) == []
    assert images_sentences(rows(teacher=1000, student=None)) == []  # from a version that did not record it


def test_one_is_singular() -> None:
    assert (counted(1, "training"), counted(0, "training"), counted(1024, "image")) == (
        "1 training",
        "0 trainings",
        "1,024 images",
    )
    row = Row("student", "resnet8", ({"seed": 0, "seconds": 1.2},))
    assert cost_sentence([row]).startswith("Cost: 1 training, 1 device second (")
