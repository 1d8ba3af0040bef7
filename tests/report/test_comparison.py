"""Several runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from finished_jobs import add_job

from sftn_fast import cli, report


def make_run(
    folder: Path, top1: dict[str, tuple[float, ...]], *options: str, method: str | None = None, **data: object
) -> Path:
    for name, figures in top1.items():
        for seed, figure in enumerate(figures):
            add_job(folder, name, seed, figure)
            path = folder / f"seed{seed}" / name / "result.json"
            result = json.loads(path.read_text())
            result["identity"] = {"distill": method, "data": {"num_train": 150, "content": "aa", **data}}
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


def test_intervals_over_seeds_and_paired_differences_from_the_first_run(tmp_path: Path) -> None:
    figures = {"one": (90.0, 91.0, 92.0), "two": (91.0, 92.5, 93.0), "three": (89.0, 90.0)}
    runs = [make_run(tmp_path / name, {"teacher": top1}) for name, top1 in figures.items()]
    lines = lines_of(report.compare(runs))
    # Half width 4.3027 * 1.0 / sqrt 3 and 12.706 * 0.7071 / sqrt 2.
    intervals = next(line for line in lines if line[0] == "standard teacher" and " to " in line[1])
    assert intervals[1] == "88.52 to 93.48" and intervals[3] == "83.15 to 95.85"
    # t = 7 with 2 degrees of freedom; the second difference has two pairs, both -1, and no test.
    assert ["standard teacher, two - one", "+1.17 ± 0.29", "+0.45 to +1.88", "0.020", "3"] in lines
    assert ["standard teacher, three - one", "-1.00 ± 0.00", "-", "-", "2"] in lines


def test_p_is_corrected_for_all_differences(tmp_path: Path) -> None:
    figures = {"one": (90.0, 91.0, 92.0), "two": (91.0, 92.5, 93.0), "three": (91.0, 92.5, 93.0)}
    runs = [make_run(tmp_path / name, {"teacher": top1}) for name, top1 in figures.items()]
    lines = lines_of(report.compare(runs))
    assert [line[3] for line in lines if line[0].endswith("- one")] == ["0.040", "0.040"]


def test_accuracies_on_different_test_images_are_not_subtracted(tmp_path: Path) -> None:
    figures = {"teacher": (90.0, 91.0, 92.0)}
    one = make_run(tmp_path / "one", figures, data="digits", num_test=297)
    others = [
        make_run(tmp_path / "fashion", figures, data="fashion_mnist", num_test=297),
        make_run(tmp_path / "fewer", figures, data="digits", num_test=100),
        make_run(tmp_path / "pixels", figures, data="digits", num_test=297, content="cc"),
    ]
    for other in others:
        text = report.compare([one, other])
        assert f"{other.name} - one: no difference, because they were tested on different images" in text
        by_heading = {line[0]: line for line in lines_of(text)}
        assert by_heading["top-1 last %"] == ["top-1 last %", "one", other.name]
        assert by_heading["seconds"][-1] == f"{other.name} - one"
        assert "difference in top-1 last" not in text


def test_the_same_test_images_with_other_training_images(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0, 91.0)}, num_train=100, content="cc")
    two = make_run(tmp_path / "two", {"teacher": (91.0, 92.5)})
    assert "standard teacher, two - one" in report.compare([one, two])
    for number, run in enumerate((one, two)):
        for path in run.glob("seed*/*/result.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"test_content": str(number)}))
    assert "standard teacher, two - one" not in report.compare([one, two])


def test_a_method_is_compared_with_itself_in_a_run_of_several(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"distill-teacher": (80.0, 81.0)}, method="kd")
    figures = {"distill-teacher-kd": (80.5, 82.0), "distill-teacher-sp": (79.0,)}
    two = make_run(tmp_path / "two", figures, "--methods", "[kd, sp]", "--seeds", "0", "1")
    lines = lines_of(report.compare([one, two]))
    assert any(line[0] == "student of standard teacher, kd, two - one" for line in lines)


def test_what_is_unfinished_is_named_and_the_rest_compared(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0, 91.0)}, "--stages", "teacher,student", "--seeds", "0", "1")
    two = make_run(tmp_path / "two", {"teacher": (91.0, 92.5)}, "--stages", "teacher", "--seeds", "0", "1")
    text = report.compare([one, two])
    assert "one: unfinished, 2 of 4 trainings: seed0/student, seed1/student" in text and "two: unfin" not in text
    assert "standard teacher, two - one" in text


def test_no_seed_in_common(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, {"teacher": (90.0,)}) for name in ("one", "two"))
    (two / "seed0").rename(two / "seed7")
    path = two / "seed7" / "teacher" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 7}))
    settings = two / "config.yaml"
    settings.write_text(settings.read_text().replace("seeds:\n- 0\n", "seeds:\n- 7\n"))
    assert "No differences: no two runs" in report.compare([one, two])


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


def best_row(text: str) -> list[str]:
    lines = lines_of(text)
    return lines[2 + next(number for number, line in enumerate(lines) if line[0] == "top-1 best %")]


@pytest.mark.parametrize(("ours", "theirs", "alike"), [(0, 30, False), (30, 0, False), (30, 20, True), (0, 0, True)])
def test_best_epochs_chosen_in_different_ways_are_not_subtracted(
    ours: int, theirs: int, alike: bool, tmp_path: Path
) -> None:
    one = make_run(tmp_path / "one", {"teacher": (90.0, 91.0)}, num_val=ours)
    two = make_run(tmp_path / "two", {"teacher": (91.0, 92.5)}, num_val=theirs)
    text = " ".join(report.compare([one, two]).split())
    assert (best_row(report.compare([one, two]))[-1] == "-") == (not alike)
    assert ("no difference in top-1 best of standard teacher" in text) == (not alike)
    assert "standard teacher, two - one" in text  # of the last epochs
    for name, held_out in (("one", ours), ("two", theirs)):
        how = "the validation split" if held_out else "the test images themselves"
        of = "" if alike else f" of {name}"
        assert f"Top-1 best{of} is that of the best epoch, chosen on {how}" in text
    assert text.count("Top-1 best") == (1 if alike else 2)


def test_a_best_epoch_beside_a_network_from_a_file(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, {"teacher": (90.0, 91.0)}, num_val=30) for name in ("one", "two"))
    for path in two.glob("seed*/*/result.json"):  # which was trained for no epoch, so there was nothing to choose
        path.write_text(json.dumps(json.loads(path.read_text()) | {"epochs": 0}))
    assert best_row(report.compare([one, two]))[-1] == "-"


def test_of_three_runs_each_choice_names_its_runs(tmp_path: Path) -> None:
    held_out = {"one": 30, "two": 0, "three": 30}
    runs = [make_run(tmp_path / name, {"teacher": (90.0,)}, num_val=count) for name, count in held_out.items()]
    text = " ".join(report.compare(runs).split())
    assert "Top-1 best of one, three is that of the best epoch, chosen on the validation split" in text
    assert "Top-1 best of two is that of the best epoch, chosen on the test images themselves" in text
