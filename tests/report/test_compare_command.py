"""The command that compares runs: what it refuses, what it leaves out, and its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from test_comparison import make_run

from sftn_fast.compare import main
from sftn_fast.experiment.labels import label
from sftn_fast.report import compared_curves, figure
from sftn_fast.report.compared_runs import read_runs
from sftn_fast.report.comparison import jobs_of

TOP1 = {"teacher": (90.0, 91.0), "distill-sftn": (80.0, 81.0)}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return [make_run(tmp_path / name, TOP1) for name in ("one", "_two $x$")]


@pytest.mark.usefixtures("rendered")
def test_the_picture_is_written_where_a_line_says(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "plot: comparison.png"
    assert main([*map(str, runs), "--output", "mine.png"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "plot: mine.png"
    with Image.open("mine.png") as picture:
        assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(2**24) or ()) > 20


def test_only_an_older_comparison_is_replaced(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert [main([str(run) for run in runs]) for _ in range(2)] == [0, 0]
    for name, options in (("comparison.png", []), ("mine.png", ["--output", "mine.png"])):
        Path(name).write_text("precious")
        assert main([*map(str, runs), *options]) == 2
        assert "--output must be a new file, because --overwrite is not given" in capsys.readouterr().err
        assert Path(name).read_text() == "precious"
        assert main([*map(str, runs), *options, "--overwrite"]) == 0
        assert figure.is_own_picture(Path(name))


def test_a_panel_for_each_job_and_a_line_for_each_run(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(compared_curves, "save", lambda plt, picture, path: (drawn.append(picture), plt.close(picture)))
    found, _ = read_runs(runs)
    assert compared_curves.plot_runs(found, jobs_of(found), Path("x.png")) == 0
    panels = [axis for axis in drawn[0].axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == [label("teacher"), label("distill-sftn")]
    for axis, top1 in zip(panels, ((90.0, 91.0), (80.0, 81.0)), strict=True):
        for line in axis.lines:
            assert list(line.get_xdata()) == [60, 120, 180, 240]
            assert line.get_ydata()[-1] == pytest.approx(sum(top1) / 2)
    (legend,) = drawn[0].legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["one", figure.plain("_two $x$")]


def test_a_curve_far_below_the_others_stays_in_the_picture(tmp_path: Path) -> None:
    axis = figure.pyplot().subplots()[1]
    compared_curves.cut_early(axis, [dict.fromkeys(range(100), 95.0), {1: 20.0, 2: 60.0, 3: 61.0}])
    assert axis.get_ylim()[0] < 60.0
    figure.pyplot().close("all")


def test_unusable_folders_are_left_out_in_one_line_each(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    Path("empty").mkdir()
    damaged = make_run(Path("damaged"), {"teacher": (90.0,)})
    (damaged / "seed0" / "teacher" / "result.json").write_text("{")
    Path("link").symlink_to(runs[0])
    odd = ["nope", "file", "empty", "damaged", "link", "./one", "~nobody-here/x", "a" * 300]
    assert main([*map(str, runs), *odd]) == 0
    out = capsys.readouterr()
    lines = out.err.splitlines()
    assert len(lines) == len(odd) and all(line.startswith("left out: ") for line in lines)
    reasons = (
        "does not exist",
        "not a folder",
        "not the folder of a run",
        "is damaged",
        "named before",
        "named before",
    )
    assert all(reason in line for reason, line in zip(reasons, lines, strict=False))
    assert "standard teacher" in out.out


@pytest.mark.parametrize(
    "argv",
    [
        ["one"],
        ["one", "nope"],
        ["one", "one"],
        ["one", "./one/../one"],
        ["one", "_two $x$", "--output", "x.pdf"],
        ["one", "_two $x$", "--output", "nope/x.png"],
        ["one", "_two $x$", "--output", "one"],
        ["one", "_two $x$", "--output", "/dev/null"],
    ],
)
def test_nothing_to_compare_is_one_line_and_writes_nothing(
    argv: list[str], runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert main(argv) == 2
    out = capsys.readouterr()
    assert out.out == "" and len(out.err.splitlines()) == 1 and out.err.startswith("error: ")
    assert sorted(Path().rglob("*")) == before


def test_runs_without_curves(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    for path in [path for run in runs for path in run.rglob("summary.csv")]:
        path.unlink()
    assert main([str(run) for run in runs]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("no plot: ")
    assert not Path("comparison.png").exists()
    assert main([*map(str, runs), "--output", "mine.png"]) == 2
    assert "--output can't be drawn" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["report.png", "curves.png", "samples/0.png"])
def test_a_picture_of_a_run_is_not_replaced(name: str, runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    mine = runs[1] / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"of the run")
    assert main([*map(str, runs), "--output", str(mine), "--overwrite"]) == 2
    assert "--output must be another file than those that are read" in capsys.readouterr().err
    assert mine.read_bytes() == b"of the run"
