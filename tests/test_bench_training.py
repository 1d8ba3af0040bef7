"""The benchmarks of whole steps and of growth: that both loops train the same thing, and what is written."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

from bench import __main__ as command
from bench import readme, record, scaling
from bench.check import compare
from bench.eager import training as eager
from bench.training import ours, suite
from bench.training.cases import CASES, TrainingCase
from bench.training.split import PARTS, Split
from sftn_fast.config import EngineConfig
from sftn_fast.data import Batch
from sftn_fast.data.source import Images

ABOUT = {"threads": 1, "processor": "P", "simd": "S", "torch": "T", "date": "D"}


def step_of(method: str, *, plain: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    torch.manual_seed(0)
    case = TrainingCase(method, "wrn_16_1", "resnet8", 8)
    if plain:
        _, step = eager.training(case)
        return lambda images, index: step([images, index, index])
    _, step = ours.training(case, EngineConfig(device="cpu"))
    return lambda images, index: step(Batch(images, index, index))


@pytest.mark.parametrize("method", ["kd", "rkd", "sftn"])
def test_both_loops_take_the_same_step(method, monkeypatch):
    few = Images(torch.zeros(32, 3, 32, 32, dtype=torch.uint8), torch.arange(32))
    learned: dict[bool, list[torch.Tensor]] = {}
    for plain in (True, False):
        with monkeypatch.context() as patch:
            for module in (eager, ours):
                patch.setattr(module, "images", lambda: few)
            updates = []
            sgd = torch.optim.SGD.step
            patch.setattr(torch.optim.SGD, "step", lambda self: (updates.append(self), sgd(self)))  # noqa: B023
            generator = torch.Generator().manual_seed(1)
            step_of(method, plain=plain)(torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8))
            (optimizer,) = updates
            learned[plain] = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    assert len(learned[True]) == len(learned[False]) > 0
    for mine, theirs in zip(learned[False], learned[True], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=5e-4)


def test_cases_are_named_apart():
    assert len({case.name for case in CASES}) == len(CASES) == 8


def test_what_is_called_inside_counts_once():
    split = Split()
    inner = split.timed("data", lambda: sum(range(1000)))
    split.timed("forward", lambda: [inner() for _ in range(3)])()
    parts = split.take(total=1.0)
    assert parts.keys() == {"forward", "rest"}
    assert parts["forward"] + parts["rest"] == 1.0
    assert split.take(0.5) == {"rest": 0.5}


@pytest.mark.slow
def test_implementations_train_in_processes_of_their_own():
    case = TrainingCase("kd", "resnet8", "resnet8", 8)
    *rows, failed = suite.measure_case(case, ["eager", "ours", "no such"], seconds=0)
    assert [row["implementation"] for row in rows] == ["eager", "ours"]
    for row in rows:
        assert row["n"] >= 3 and row["ratio"] > 0 and row["peak_bytes"] > 2**26
        assert all(row["split"][part] > 0 for part in ("frozen forward", "forward", "backward"))
    assert "no such" in failed["error"]
    assert suite.line(failed).startswith("| KD: resnet8")


def rows_of_a_step(ratio: float) -> list[dict]:
    split = dict.fromkeys(PARTS, 1.0)
    times = {"n": 3, "p20": 1.0, "p50": 2.0, "p80": 3.0, "peak_bytes": 2**30, "first_step": 5.0, "split": split}
    rows = [("eager", 1.0, 100.0), ("ours", ratio, 100 * ratio), ("ours, compile", 1.0, 100.0)]
    return [
        {"case": "KD", "implementation": name, "ratio": ratio, "images_per_second": speed, **times}
        for name, ratio, speed in rows
    ] + [{"case": "start", "implementation": "import torch", "n": 3, "p20": 1.0, "p50": 2.0, "p80": 3.0}]


def test_a_record_of_whole_steps(tmp_path):
    rows = rows_of_a_step(1.5)
    suite.write("training-cpu", ABOUT, rows, tmp_path)
    assert record.read("training-cpu", tmp_path) == (ABOUT, rows)
    page = (tmp_path / "training-cpu.md").read_text()
    assert all(suite.line(row) in page for row in rows)
    assert (tmp_path / "training-cpu.png").stat().st_size > 5000
    assert "| KD | 100 | **150** | 1.50 | 1,024.0 MiB / 1,024.0 MiB |" in readme.steps_table(tmp_path)
    assert [verdict.regressed for verdict in compare(rows, rows_of_a_step(1.2))] == [False]
    assert [verdict.regressed for verdict in compare(rows, rows_of_a_step(1.0))] == [True]


def test_a_record_of_growth(tmp_path):
    times = {"n": 3, "p20": 1.0, "p80": 3.0, "peak_bytes": 2**20}
    rows = [
        {"case": "batch", "size": size, "implementation": "ours", "p50": float(us), **times}
        for size, us in ((16, 10), (64, 10), (128, 20), (256, 80))
    ]
    exponents = scaling.exponents(rows)
    assert [exponents["batch", "ours", size] for size in (64, 128, 256)] == pytest.approx([0, 1, 2])
    scaling.write("scaling-cpu", ABOUT, rows, tmp_path)
    assert f"{scaling.line(rows[-1])} 2.00 |" in (tmp_path / "scaling-cpu.md").read_text()
    assert (tmp_path / "scaling-cpu.png").stat().st_size > 5000


@pytest.mark.parametrize("series", scaling.SERIES)
def test_every_series_grows(series, monkeypatch):
    monkeypatch.setattr(scaling, "NEGATIVES", 8)
    build, sizes = scaling.SERIES[series]
    assert list(sizes) == sorted(set(sizes))
    steps = build(sizes[0])
    assert steps["ours"]().isfinite()
    assert "eager" in steps or "CRD" in series


def test_the_readme_without_marks_or_record_keeps_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "table", lambda folder: "speeds")
    plain = f"a {readme.BEGIN} old {readme.END} b"
    assert readme.refreshed(plain, tmp_path) == f"a {readme.BEGIN}\n\nspeeds\n\n{readme.END} b"
    marked = f"{plain} {readme.STEPS_BEGIN} old {readme.STEPS_END} c"
    assert readme.refreshed(marked, tmp_path).endswith(f"{readme.STEPS_BEGIN} old {readme.STEPS_END} c")
    suite.write("training-cpu", ABOUT, rows_of_a_step(1.5), tmp_path)
    assert "**150**" in readme.refreshed(marked, tmp_path)


@pytest.mark.parametrize("options", [["nosuch"], ["training", "--device", "cuda"]])
def test_the_command_refuses(options, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_command_records_a_suite(tmp_path, monkeypatch, capsys):
    rows = rows_of_a_step(1.5)

    def measure(seconds, report, *, compile):
        assert seconds == 7 and compile is False
        for row in rows:
            report(row)
        return rows

    monkeypatch.setattr(suite, "measure", measure)
    options = ["bench", "training", "--device", "cpu", "--seconds", "7", "--no-compile", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert not end.value.code
    assert record.read("training-cpu", tmp_path)[1] == rows
    assert suite.line(rows[1]) in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*options, "--check"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert not end.value.code


def test_starts_of_python_are_rows_too(monkeypatch):
    commands = []
    monkeypatch.setattr(suite.subprocess, "run", lambda command, **_: commands.append(command[1:]))
    rows = list(suite.starts())
    assert [row["implementation"] for row in rows][:2] == ["import torch", "import sftn_fast.ops"]
    assert {tuple(command[:2]) for command in commands} == {
        ("-c", "import torch"),
        ("-c", "import sftn_fast.ops"),
        ("-m", "sftn_fast.train"),
    }
    assert all(row["n"] >= 3 and suite.line(row).startswith("| start |") for row in rows)
