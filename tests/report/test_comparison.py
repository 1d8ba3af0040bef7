"""Several runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finished_jobs import add_job

from sftn_fast import cli, report


def make_run(folder: Path, top1: dict[str, tuple[float, ...]], *options: str, **data: object) -> Path:
    for name, figures in top1.items():
        for seed, figure in enumerate(figures):
            add_job(folder, name, seed, figure)
            path = folder / f"seed{seed}" / name / "result.json"
            result = json.loads(path.read_text())
            result["identity"] = {"data": {"num_train": 150, "content": "aa", **data}}
            path.write_text(json.dumps(result))
    settings = cli.to_dict(cli.parse([*options, "--output", str(folder)])[0])
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def lines_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]


def test_settings_that_differ_and_results_beside_each_other(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0, 91.0, 92.0), "student": (80.0,)})
    two = make_run(
        tmp_path / "two", {"teacher": (91.0, 92.5, 93.0)}, "--optim.lr", "0.1", "--engine.tensorboard", "true"
    )
    text = report.compare([one, two])
    lines = lines_of(text)
    assert lines[0] == ["setting", "one", "two"]
    assert ["optim.lr", "0.05", "0.1"] in lines and ["engine.tensorboard", "false", "true"] in lines
    assert not any(line[0] in ("output", "epochs") for line in lines)
    # Differences 1, 1.5, 1: mean 1.1667, half width 4.3027 * 0.2887 / sqrt 3.
    row = ["standard teacher", "91.00 ± 1.00 (n = 3)", "92.17 ± 1.04 (n = 3)", "+1.17 (+0.45 to +1.88)"]
    assert row in lines
    assert ["student alone", "80.00 (n = 1)", "-", "-"] in lines


def test_three_runs_have_no_difference(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, {"teacher": (90.0,)}) for name in ("a", "b", "c")]
    text = report.compare(runs)
    assert "the settings are the same" in text
    assert lines_of(text)[0] == ["top-1 last %", "a", "b", "c"]


def test_other_data_are_named(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0,)})
    two = make_run(tmp_path / "two", {"teacher": (90.0,)}, num_train=300, content="bb")
    assert "The data differ in num_train: one 150, two 300" in report.compare([one, two])
    same = make_run(tmp_path / "same", {"teacher": (90.0,)}, content="cc")
    assert "The images differ, although their numbers are equal" in report.compare([one, same])


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name / "demo", {"teacher": (90.0,)}) for name in ("a", "b")]
    assert lines_of(report.compare(runs))[0] == ["top-1 last %", "a/demo", "b/demo", "b/demo - a/demo"]


def test_a_run_without_configuration(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, {"teacher": (90.0,)}) for name in ("a", "b")]
    (runs[1] / "config.yaml").unlink()
    assert "no settings of b: config.yaml is missing or damaged" in report.compare(runs)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_it_fits_the_terminal(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = {"teacher": (90.0, 91.0), "distill-sftn": (80.0, 81.0)}
    runs = [make_run(tmp_path / f"a_run_with_a_long_name_{number}", figures) for number in range(3)]
    monkeypatch.setenv("COLUMNS", str(width))
    assert report.main([str(run) for run in runs]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown and max(map(len, shown)) <= width


def test_a_folder_without_results_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0,)})
    assert report.main([str(one), str(tmp_path / "nope")]) == 2
    assert "nope" in capsys.readouterr().err
