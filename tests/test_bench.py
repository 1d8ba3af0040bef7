"""The benchmark's own code: counts, records, and the verdict that a kernel is slower."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench.cases
import bench.family
from bench import __main__ as main
from bench import chart, host, levels, loaders, readme, record, replay, scaling
from bench.cases import features, logits
from bench.cases.case import Case, Step
from bench.check import TOLERANCE, compare
from bench.family import Kernels, measure_case
from bench.measure import MIN_TURNS, Effort, Interval, Spread, cost, interleaved, peak_memory
from bench.progress import Part, Progress
from bench.training.worker import OURS, USUAL
from sftn_fast.ops import _capability, _nodes

EFFORT = Effort(turns=3, seconds=0.1, compile=False)
SUITES = Path(bench.__file__).parent


def small_case(loss=lambda x: x.square().sum()) -> Case:
    def build(device):
        x = torch.ones(1000, device=device, requires_grad=True)
        return {name: Step([x], lambda: loss(x)) for name in ("eager", "reference", "ours")}

    return Case("squares", build, bytes_moved=12_000)


def test_every_family_has_a_suite():
    families = {*bench.cases.FAMILIES, "training", "loaders"}
    assert {path.stem.removeprefix("test_") for path in SUITES.glob("test_*.py")} == families


@pytest.mark.parametrize("family", bench.cases.FAMILIES)
def test_case_names_are_unique(family):
    names = [case.name for case in bench.cases.of_family(family)]
    assert sorted(set(names)) == sorted(names)


def test_slow_steps_get_few_turns(monkeypatch):
    now = [0.0]

    def slow():
        now[0] += 0.15

    monkeypatch.setattr("bench.measure.time.perf_counter", lambda: now[0])
    times = interleaved({"eager": slow, "ours": slow}, turns=1000, seconds=0.5)
    assert now[0] < 3
    assert {spread.n for spread in times.values()} == {MIN_TURNS}
    assert times["ours"].p50 == pytest.approx(150_000)
    begun = now[0]
    assert interleaved({"eager": slow, "ours": slow}, turns=1000, seconds=6)["ours"].n == 20  # no call is thrown away
    assert now[0] - begun == pytest.approx(6 + 2 * 0.15)


@pytest.mark.parametrize(
    ("count", "ranks"), [(5, None), (6, (1, 6)), (8, (1, 8)), (9, (2, 8)), (20, (6, 15)), (50, (18, 33))]
)
def test_an_interval_lies_between_two_samples(count, ranks):
    """The ranks are those of tables of the sign test's interval for the median."""
    samples = [float(x) for x in torch.randperm(count) + 1]
    assert Interval.of(samples) == (ranks and Interval(*map(float, ranks)))


def test_an_interval_holds_the_median_as_often_as_it_says():
    draws = torch.randn(2000, 15, generator=torch.Generator().manual_seed(0)).exp()
    found = [Interval.of(samples) for samples in draws.tolist()]
    assert 0.95 <= sum(interval.low < 1 < interval.high for interval in found) / len(found) < 0.98


class Machine:
    """A clock, and steps that take so many seconds times the slowness of the moment."""

    def __init__(self, monkeypatch, slowness=lambda call: 1.0) -> None:
        self.now, self.calls, self.slowness = 0.0, 0, slowness
        monkeypatch.setattr("bench.measure.time.perf_counter", lambda: self.now)

    def step(self, seconds: float, *, steady: bool = False):
        def call() -> None:
            self.calls += 1
            self.now += seconds * (1 if steady else self.slowness(self.calls))

        return call


def test_a_known_ratio_ends_the_turns(monkeypatch):
    machine = Machine(monkeypatch)
    steps = {"eager": machine.step(0.15), "ours": machine.step(0.05)}
    found = interleaved(steps, turns=40, within=0.02)
    assert found["ours"].n == found["eager"].n == 6  # the least number with an interval
    assert found["ours"].interval() == {"interval": [3, 3]} and found["eager"].interval() == {}
    assert interleaved(steps, turns=40)["ours"].n == 40
    assert interleaved(steps, turns=4, within=0.02)["ours"].interval() == {}
    assert interleaved({"ours": steps["ours"]}, turns=40, within=0.02)["ours"].n == 40  # there is no ratio to know


def test_a_machine_that_slows_down_does_not_hide_the_ratio(monkeypatch):
    """What slows all implementations alike leaves their ratio as it is; what slows one does not."""
    machine = Machine(monkeypatch, slowness=lambda call: 1 + 0.01 * (call // 10))
    eager = machine.step(0.15)
    assert interleaved({"eager": eager, "ours": machine.step(0.15)}, turns=40, within=0.02)["ours"].n < 20
    uneven = Machine(monkeypatch, slowness=lambda call: 1 + 0.5 * (call % 4 < 2))
    steps = {"eager": uneven.step(0.15), "ours": uneven.step(0.15, steady=True)}
    found = interleaved(steps, turns=40, within=0.02)["ours"]
    assert found.n == 40 and not found.ratio.within(0.02)


@pytest.mark.parametrize("samples", [[1.0, 2.0, 9.0], [4.0, 1.0, 2.0, 3.0], [*range(100)]])
def test_quantiles_stay_among_what_was_measured(samples):
    spread = Spread.of(samples)
    assert min(samples) <= spread.p20 < spread.p50 < spread.p80 <= max(samples)
    assert spread.row(1, scale=10) == {
        "n": len(samples),
        **{key: pytest.approx(10 * getattr(spread, key), abs=0.05) for key in ("p20", "p50", "p80")},
    }


def test_ops_and_memory_are_counted():
    x = torch.ones(1000)
    assert cost(lambda: x + 1).launches == 1
    assert cost(lambda: (x + 1).softmax(0)).launches == 2  # softmax counts once, with all it calls
    assert peak_memory(x.clone) == 4000


def test_memory_on_a_gpu_includes_the_gradients(monkeypatch):
    """Memory left by the previous call must not hide a part of the next call's peak."""
    leaf = torch.ones(1000, requires_grad=True)
    step = Step([leaf], lambda: leaf.sum())
    step()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 4000 + (0 if leaf.grad is None else leaf.grad.nbytes))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", torch.cuda.memory_allocated)
    for name in ("reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    assert cost(step, "cuda").peak_bytes == 4000


def test_rows_of_a_case():
    rows = list(measure_case(small_case(), "cpu", EFFORT, bandwidth=1e9))
    assert [row["implementation"] for row in rows] == ["eager", "reference", "ours"]
    assert rows[0]["ratio"] == 1
    for row in rows:
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["bandwidth_share"] == pytest.approx(12_000 / row["p50"] * 1e6 / 1e9, rel=0.05, abs=1e-3)


def test_what_torch_compile_cannot_take_costs_only_its_row(monkeypatch):
    def fail(step):
        raise RuntimeError("no C++ compiler | was found\nand more")

    monkeypatch.setattr(bench.family, "compiled", fail)
    effort = Effort(turns=3, seconds=0.1, compile=True)
    *measured, failed = measure_case(small_case(), "cpu", effort, bandwidth=1e9)
    assert [row["implementation"] for row in measured] == ["eager", "reference", "ours"]
    assert failed["error"] == "RuntimeError: no C++ compiler | was found"
    assert Kernels("squares").line(failed) == "| squares | compile | RuntimeError: no C++ compiler / was found |"


def test_what_torch_compile_has_nothing_to_do_for_has_no_row():
    plain = Case("draws", lambda device: {"eager": lambda: torch.rand(9), "ours": lambda: torch.rand(9)})
    rows = measure_case(plain, "cpu", Effort(turns=3, seconds=0.1, compile=True), bandwidth=1e9)
    assert [row["implementation"] for row in rows] == ["eager", "ours"]


@pytest.mark.parametrize("family", ["logits", "negatives"])
def test_a_measurement_is_written_and_read_back(family, tmp_path):
    rows = list(measure_case(small_case(), "cpu", EFFORT, bandwidth=1e9))
    rows.append({"case": "squares", "implementation": "compile", "error": "RuntimeError: none"})
    rows[1]["interval"] = [2.0, 2.125]
    about, suite = record.conditions("cpu") | record.limits(EFFORT), Kernels(family)
    suite.write("squares-cpu", about, rows, tmp_path)
    assert record.read("squares-cpu", tmp_path) == (about, rows)
    page = (tmp_path / "squares-cpu.md").read_text()
    assert "squares-cpu.png" in page and bench.cases.note_on(family) in page
    assert "| 2.00 to 2.12 |" in page and "seconds 0.1, within 0.0. Forward" in page and record.ending(about) in page
    assert "by turns" in record.ending(about) and not record.ending(record.conditions("cpu"))
    assert all(suite.line(row) in page for row in rows)
    assert (tmp_path / "squares-cpu.png").stat().st_size > 5000


def test_every_implementation_has_a_colour():
    names = {name for family in bench.cases.FAMILIES for name in bench.cases.of_family(family)[0].steps("cpu")}
    trained = {name for device in (*OURS.values(), *USUAL.values()) for name in device}
    assert names | trained | {*scaling.SHOWN, "compile", "liger", "liger, JSD"} == chart.COLOURS.keys()


def row(case: str, ratio: float, implementation: str = "ours") -> dict:
    return {"case": case, "implementation": implementation, "ratio": ratio}


def test_only_ratios_decide():
    recorded = [row("a", 10.0), row("b", 10.0), row("gone", 3.0), row("a", 1.0, "eager")]
    least = 10.0 * (1 - TOLERANCE)
    measured = [row("a", least + 0.1), row("b", least - 0.1), row("new", 1.0), row("a", 0.1, "reference")]
    verdicts = compare(recorded, measured)
    assert [verdict.regressed for verdict in verdicts] == [False, True, True]
    assert [str(verdict).split()[0] for verdict in verdicts] == ["ok", "SLOWER", "MISSING"]


@pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)
def test_speeds_on_a_page_are_those_recorded(page):
    text = page.read_text()
    assert readme.refreshed(text) == text
    assert readme.marks("kernels" if page.name == "README.md" else "losses")[0] in text


OF_THE_README = ("kernels", "status")


def test_every_recorded_case_is_on_the_benchmarks_page():
    page = readme.PAGES[1].read_text()
    for family in bench.cases.FAMILIES:
        for level, (_, rows) in record.by_level(family).items():
            for row in rows:
                assert level == "default" or f"| {row['case']} |" in page, row["case"]
    assert all(readme.marks(section)[0] in page for section in readme.SECTIONS if section not in OF_THE_README)


def test_loaders_are_measured_and_recorded(tmp_path, monkeypatch):
    pytest.importorskip("nvidia.dali.fn")
    pytest.importorskip("torchvision.io")
    monkeypatch.setattr(loaders, "FILES", 20)
    monkeypatch.setattr(loaders, "default_workers", lambda: 1)
    files = loaders.make_files(tmp_path / "files", 20)
    assert 80_000 < sum(path.stat().st_size for path in files) / 20 < 130_000
    about = {"device": "cpu"}
    rows = list(loaders.measure(about, Effort(turns=1, seconds=0.0, compile=False)))
    loaders.write("loaders-cpu", about, rows, tmp_path)
    assert record.read("loaders-cpu", tmp_path)[1] == rows
    assert [row["loader"] for row in rows] == list(loaders.loaders(files, 1))
    assert all(row["p20"] > 0 and row["n"] == MIN_TURNS for row in rows) and rows[0]["ratio"] == 1
    text = (tmp_path / "loaders-cpu.md").read_text()
    assert all(loaders.line(row) in text for row in rows)


def test_the_price_of_a_call(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "THREADS", (1,))
    before = torch.get_num_threads()
    rows = list(host.measure({}, Effort(turns=1, seconds=0.0, compile=False, cases=("KD",))))
    assert torch.get_num_threads() == before
    autograd = host.AUTOGRAD if _nodes.LIBRARY.loaded else host.AUTOGRAD[1:]
    assert [(row["case"], row["autograd"]) for row in rows] == [
        (case, of) for case in ("KD (64, 100)", "KD + CE (64, 100)") for of in autograd
    ]
    assert all(row["ratio"] == round(row["ours"]["p20"] / row["empty"]["p20"], 2) for row in rows)
    host.write("host-cpu", {"device": "cpu"}, rows, tmp_path)
    assert record.read("host-cpu", tmp_path)[1] == rows
    assert all(host.line(row) in (tmp_path / "host-cpu.md").read_text() for row in rows)
    monkeypatch.setattr(readme, "_where", lambda conditions: "here")
    table = readme.host(tmp_path)
    assert [line.split(" | ")[0] for line in table.splitlines()[2:4]] == ["| KD (64, 100)", "| KD + CE (64, 100)"]
    assert all(f"**{row['ratio']:.2f}**" in table for row in rows) and table.endswith("20th percentiles; here.")


@pytest.mark.parametrize("num_results", [1, 3])
def test_an_empty_call_differentiates_the_first_input_alone(num_results):
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    host.empty(num_results)(student, teacher).backward()
    assert student.grad.shape == student.shape
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["loaders", "--device", "cuda"], "loaders, scaling and host are measured on the CPU"),
        (["training", "scaling", "--device", "cuda"], "loaders, scaling and host are measured on the CPU"),
        (["nothing"], "no family nothing; there are contrastive, "),
        (["training", "--device", "cuda"], "PyTorch finds no GPU"),
    ],
)
def test_the_command_refuses(options, message, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench", *options])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("wanted", "ours", "levels", "theirs", "reason"),
    [
        (None, "avx2", ("default", "avx2"), "AVX2", None),
        ("default", "default", ("default", "avx2"), "DEFAULT", None),
        (None, "default", ("default",), "SVE256", None),  # no choice
        (
            "avx2",
            "avx2",
            ("default", "avx2"),
            "DEFAULT",
            "the kernels use avx2, PyTorch default: set SFTN_CPU_CAPABILITY",
        ),
        ("avx512", "avx2", ("default", "avx2"), "AVX2", "SFTN_CPU_CAPABILITY is 'avx512', but the kernels use avx2"),
    ],
)
def test_a_comparison_needs_one_level(wanted, ours, levels, theirs, reason, monkeypatch, capsys):
    monkeypatch.delenv("SFTN_CPU_CAPABILITY", raising=False)
    if wanted:
        monkeypatch.setenv("SFTN_CPU_CAPABILITY", wanted)
    monkeypatch.setattr(_capability, "current", lambda: ours)
    monkeypatch.setattr(_capability, "available", lambda: levels)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: theirs)
    monkeypatch.setattr("sys.argv", ["bench", "logits", "--device", "cpu"])
    if reason is None:
        assert main.parse().families == ["logits"]
        return
    with pytest.raises(SystemExit, match="2"):
        main.main()
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "theirs"), [({}, None), ({"SFTN_CPU_CAPABILITY": "avx2"}, "avx2"), ({"ATEN_CPU_CAPABILITY": "x"}, "x")]
)
def test_the_level_is_handed_to_torch_before_its_import(given, theirs):
    program = "import bench, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('ATEN_CPU_CAPABILITY'))"
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_CPU_CAPABILITY")}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment | given, cwd=SUITES.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(theirs)


def test_records_and_tables_name_the_level():
    about = record.conditions("cpu")
    assert about["level"] == _capability.current()
    for level in ("avx2", "avx512"):
        assert f"at level {level}, torch" in readme._where([about | {"level": level}])
    assert levels.of({"simd": "AVX512"}) == "avx512"  # a record from before there was a choice


@pytest.mark.parametrize(
    ("device", "families"),
    [("cpu", [*main.SUITES]), ("cuda", [*bench.cases.FAMILIES, "training"])],
)
def test_the_command_measures_all_that_a_device_has(device, families, tmp_path, monkeypatch):
    measured: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(main, "run", lambda family, *_: (measured.append(family), ({}, []))[1])
    empty = SimpleNamespace(write=lambda *_: None, expected=lambda *_: 60.0)
    monkeypatch.setattr(main, "SUITES", dict.fromkeys(main.SUITES, empty))
    monkeypatch.setattr("sys.argv", ["bench", "--device", device, "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        main.main()
    assert measured == families


@pytest.fixture
def both(monkeypatch):
    """A machine with both levels, and a library that was built for all."""
    monkeypatch.setattr(_capability, "available", lambda: _capability.LEVELS)
    monkeypatch.setattr(_capability, "current", lambda: "avx512")


def asked(monkeypatch, *options: str) -> Namespace:
    """Return the command's arguments."""
    monkeypatch.setattr(record, "mismatch", lambda: None)
    monkeypatch.setattr("sys.argv", ["bench", "--device", "cpu", *options])
    return main.parse()


def test_kernels_are_measured_at_both_levels(both, monkeypatch):
    names = [str(part) for part in main.parts(asked(monkeypatch, "--levels"))]
    kernels = [f"{family} at {level}" for family in bench.cases.FAMILIES for level in ("avx2", "avx512")]
    assert names == [*kernels, "training", "loaders", "scaling", "host"]
    checked = main.parts(asked(monkeypatch, "--levels", "--check"))
    assert [str(part) for part in checked] == [*kernels, "training"]
    assert [str(part) for part in main.parts(asked(monkeypatch, "logits"))] == ["logits"]


def test_a_machine_with_one_level_is_measured_at_that(monkeypatch):
    for level, available in (("avx2", ("default", "avx2")), ("default", ("default",))):
        for name in ("available", "of_machine"):
            monkeypatch.setattr(_capability, name, lambda found=available: found)
        monkeypatch.setattr(_capability, "current", lambda found=level: found)
        assert levels.to_measure() == (level,)
        assert [str(part) for part in main.parts(asked(monkeypatch, "logits", "--levels"))] == ["logits"]


def test_levels_that_are_not_built_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(_capability, "available", lambda: ("avx512",))
    monkeypatch.setattr(_capability, "current", lambda: "avx512")
    monkeypatch.setattr(_capability, "of_machine", lambda: _capability.LEVELS)
    with pytest.raises(SystemExit, match="2"):
        asked(monkeypatch, "logits", "--levels")
    assert "only level avx512 is built: `SFTN_CPU_LEVELS=all pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [[], ["--all", "--check", "--cases", "KD + CE", "RKD", "--label", "x", "--turns", "4"]]
)
def test_a_level_is_measured_in_a_process_of_its_own(options, both, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(
        main.subprocess,
        "run",
        lambda *words, **how: (ran.append((*words, how["env"])), SimpleNamespace(returncode=1))[1],
    )
    args = asked(monkeypatch, "logits", "--levels", "--seconds", "3", "--folder", str(tmp_path), *options)
    for level in ("avx2", "avx512"):
        assert not main.measure_apart("logits", args, level)
        command, environment = ran.pop()
        assert environment["SFTN_CPU_CAPABILITY"] == environment["ATEN_CPU_CAPABILITY"] == level
        child = asked(monkeypatch, *command[3:])
        same = "device", "turns", "seconds", "within", "all", "check", "cases", "label", "folder"
        assert child.families == ["logits"] and not child.levels
        assert all(getattr(child, name) == getattr(args, name) for name in same)
        assert main.effort_for("logits", child, None) == main.effort_for("logits", args, level)


def test_torch_compile_runs_at_the_higher_level_unless_all_is_asked_for(both, monkeypatch):
    for options, expected in (([], [False, True]), (["--all"], [True, True]), (["--no-compile"], [False, False])):
        args = asked(monkeypatch, *options)
        assert [main.effort_for("logits", args, level).compile for level in ("avx2", "avx512")] == expected
        assert main.effort_for("logits", args, None).compile == expected[-1]  # in the process of a level
    assert main.effort_for("logits", asked(monkeypatch, "--all"), None).further


def test_everything_is_expected_to_take_twenty_minutes_at_most(both, monkeypatch):
    parts = main.parts(asked(monkeypatch, "--levels"))
    assert all(part.seconds > 0 for part in parts)
    assert sum(part.seconds for part in parts) < 20 * 60
    assert sum(part.seconds for part in main.parts(asked(monkeypatch, "--levels", "--all"))) > 20 * 60
    few = main.parts(asked(monkeypatch, "logits", "--cases", "KD + CE (64", "--no-compile"))
    assert 0 < few[0].seconds < 10


def test_the_time_left_follows_the_pace(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("bench.progress.time.monotonic", lambda: now[0])
    progress = Progress([Part("logits", "avx2", 120.0), Part("logits", "avx512", 240.0), Part("host", None, 60.0)])
    assert progress.plan().startswith("3 parts, about 7 minutes on ")
    assert progress.plan().endswith(": logits at avx2, logits at avx512, host")
    assert progress.at(0) == "part 1 of 3: logits at avx2; 7 minutes left"
    now[0] += 240  # twice as long as expected
    assert progress.at(1) == "part 2 of 3: logits at avx512; 10 minutes left"
    now[0] += 480
    assert progress.at(2) == "part 3 of 3: host; 2 minutes left"


ABOUT = {"threads": 2, "processor": "P", "torch": "T", "date": "2026-01-01"}


def measured(case: str, *names: str) -> list[dict]:
    times = {"eager": 8.0, "compile": 4.0, "ours": 2.0}
    return [row(case, 8 / times[name], name) | {"p50": times[name], "peak_bytes": 2**20} for name in names]


def save(folder: Path, family: str, level: str, rows: list[dict], **about) -> None:
    record.save_rows(record.named(family, "cpu", level), ABOUT | {"level": level} | about, rows, folder)


def test_a_table_has_both_levels_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ("x", "y"))
    save(tmp_path, "x", "default", measured("A", "eager", "ours"))
    save(tmp_path, "x", "avx2", measured("A", "eager", "ours"))
    failed = {"case": "A", "implementation": "compile", "error": "RuntimeError: no compiler"}
    save(tmp_path, "x", "avx512", [*measured("A", "eager", "ours"), failed])
    save(tmp_path, "y", "avx2", measured("B", "eager", "ours"), date="2026-01-02")
    save(tmp_path, "y", "avx512", measured("B", "eager", "compile", "ours"))
    (table,) = readme.losses(tmp_path).split("\n\nMedians")[:-1]
    assert table.splitlines()[0] == (
        "| forward + backward, float32 | avx2: authors' code | ours | times as fast "
        "| avx512: authors' code | torch.compile | ours | times as fast | memory, theirs / ours |"
    )
    assert table.splitlines()[2:] == [
        "| A | 8 us | 2 us | **4.0** | 8 us | - | 2 us | **4.0** | 1.0 MiB / 1.0 MiB |",
        "| B | 8 us | 2 us | **4.0** | 8 us | 4 us | 2 us | **4.0** | 1.0 MiB / 1.0 MiB |",
    ]
    where = "; 2 threads of P at levels avx2 and avx512, torch T, 2026-01-01 to 2026-01-02."
    assert readme.losses(tmp_path).endswith(where)
    monkeypatch.setattr(readme, "SHOWN", ("B",))
    assert "| B |" in readme.kernels(tmp_path) and "| A |" not in readme.kernels(tmp_path)


def test_machines_do_not_share_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ("x",))
    monkeypatch.setattr(readme, "SHOWN", ("A", "B"))
    save(tmp_path, "x", "avx2", measured("A", "eager", "ours"), **{"family and model": "25 1"})
    both = measured("A", "eager", "ours") + measured("B", "eager", "ours")
    save(tmp_path, "x", "avx512", both, **{"family and model": "25 17"})
    assert readme.losses(tmp_path).count("| A |") == 2 and "avx2:" not in readme.losses(tmp_path)
    assert "P (family and model 25 1) at level avx2, torch" in readme.losses(tmp_path)
    shown = readme.kernels(tmp_path)  # of the machine that measured most
    assert shown.count("| A |") == shown.count("| B |") == 1 and "avx2" not in shown


def test_a_table_says_that_the_machine_had_other_work(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ("x",))
    for load, said in ((3.9, "2026-01-01."), (17.1, "2026-01-01, beside other work (load 17.1).")):
        save(tmp_path, "x", "avx2", measured("A", "eager", "ours"), load=load)
        assert readme.losses(tmp_path).endswith(said)


def test_a_machine_without_vectors_is_shown_too(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ("x",))
    save(tmp_path, "x", "default", measured("A", "eager", "ours"))
    assert "| A |" in readme.losses(tmp_path) and "at level default, torch" in readme.losses(tmp_path)


def test_a_record_is_compared_with_its_level(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(main, "run", lambda *_: ({}, [row("squares", 2.0)]))
    args = asked(monkeypatch, "logits", "--check", "--folder", str(tmp_path))
    save(tmp_path, "logits", _capability.current(), [row("squares", 2.0)])
    assert main.measure("logits", args, None)
    save(tmp_path, "logits", _capability.current(), [row("squares", 4.0)])
    assert not main.measure("logits", args, None)
    assert "SLOWER  squares" in capsys.readouterr().out


def test_rows_are_saved_as_they_come(tmp_path, monkeypatch):
    """A suite that fails, or is stopped, has its rows of before on the disk."""

    def measure(about, effort):
        yield {"case": "first"}
        raise RuntimeError("out of memory")

    suite = SimpleNamespace(header=lambda device: "", line=str, measure=measure)
    monkeypatch.setitem(main.SUITES, "logits", suite)
    save = partial(record.save_rows, "logits-cpu", folder=tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        main.run("logits", "cpu", EFFORT, save)
    assert record.read("logits-cpu", tmp_path)[1] == [{"case": "first"}]


class FakeCUDA:
    """CUDA's graphs without CUDA: ``graph`` records nothing, the sync debug mode says which one is set."""

    def __init__(self) -> None:
        self.mode = "default"
        self.graph = self.stream = lambda *_, **__: nullcontext()

    class CUDAGraph:
        replays = 0

        def replay(self) -> None:
            self.replays += 1

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: None)

    current_stream = Stream

    def set_sync_debug_mode(self, mode: str) -> None:
        self.mode = mode


@pytest.fixture
def cuda(monkeypatch) -> FakeCUDA:
    fake = FakeCUDA()
    monkeypatch.setattr(replay, "torch", SimpleNamespace(cuda=fake))
    return fake


def test_a_graph_holds_several_calls(cuda):
    calls = []
    graph = replay.replayed(lambda: calls.append(cuda.mode), calls=5)
    assert graph.calls == 5 and calls == ["default"] * replay.WARM_UP + ["error"] + ["default"] * 5
    graph()
    assert graph.graph.replays == 1 and len(calls) == replay.WARM_UP + 6


def test_what_waits_for_the_host_is_not_recorded(cuda):
    def step() -> None:
        if cuda.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    assert replay.replayed(step) is None and cuda.mode == "default"

    def broken() -> None:
        if cuda.mode == "error":
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        replay.replayed(broken)
    assert cuda.mode == "default"


def test_the_calls_of_a_graph_share_its_time(monkeypatch):
    now = [0.0]

    class Slow:
        calls = 10

        def __call__(self) -> None:
            now[0] += 0.15

    monkeypatch.setattr("bench.measure.time.perf_counter", lambda: now[0])
    assert interleaved({"ours": Slow()}, seconds=0.5)["ours"].p50 == pytest.approx(15_000)


def test_graphs_are_timed_where_there_is_one(monkeypatch):
    recorded = []

    def record(step):
        recorded.append(step)
        return None if len(recorded) == 1 else replay.Replay(SimpleNamespace(replay=step), calls=1)

    monkeypatch.setattr(bench.family, "replayed", record)
    effort = Effort(turns=3, seconds=0.1, compile=False, graphs=True, implementations=("ours",))
    rows = list(measure_case(small_case(), "cpu", effort, bandwidth=1e9))
    assert {row["implementation"]: row["graph"] for row in rows} == {"eager": False, "ours": True}
    suite = Kernels("squares")
    assert [suite.line(row).split("|")[2].strip() for row in rows] == ["eager\\*", "ours"]


def test_what_is_asked_for_is_measured():
    effort = Effort(turns=3, seconds=0, compile=False, cases=("KD + CE", "RKD"), implementations=("ours",))
    assert [case for case in ("KD + CE (64, 100)", "RKD (64, 128)", "SFTN, KD + CE") if effort.wants(case)] == [
        "KD + CE (64, 100)",
        "RKD (64, 128)",
    ]
    assert effort.chosen(["eager", "reference", "ours"]) == ["eager", "ours"]
    assert EFFORT.wants("anything") and EFFORT.chosen(["eager", "reference"]) == ["eager", "reference"]


def test_a_case_that_fails_costs_only_its_row(monkeypatch, tmp_path):
    def fail(device):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(record, "copy_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(bench.family, "of_family", lambda family, large: [Case("large", fail), small_case()])
    monkeypatch.setattr("sys.argv", ["bench", "logits", "--device", "cpu", "--turns", "3", "--seconds", "0"])
    monkeypatch.setattr("sys.argv", [*main.sys.argv, "--no-compile", "--label", "try", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code  # what ours could not do is no success
    failed, *measured = record.read(f"logits-cpu-{_capability.current()}-try", tmp_path)[1]
    assert failed == {"case": "large", "implementation": "ours", "error": "RuntimeError: out of memory"}
    assert [row["implementation"] for row in measured] == ["eager", "ours"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["logits", "--device", "cpu", "--graphs"], "--graphs: there are CUDA graphs with --device cuda only"),
        (["training", "--device", "cpu", "--large"], "name the families"),
    ],
)
def test_graphs_and_large_cases_are_refused_where_there_are_none(options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench", *options])
    with pytest.raises(SystemExit, match="2"):
        main.main()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_large_cases_have_names_of_their_own():
    names = [
        case.name for family in bench.cases.FAMILIES for large in (False, True) for case in of_family(family, large)
    ]
    assert len(set(names)) == len(names) and any("bfloat16" in name for name in names)


def of_family(family: str, large: bool) -> list[Case]:
    return bench.cases.of_family(family, large=large)


HALF = {
    "kd_ce": partial(logits.kd_ce, 9, 17),
    "sftn": partial(logits.sftn, 9, 17),
    "dist": partial(logits.dist, 9, 17),
    "wkd": partial(logits.wkd, 9, 17),
    "hint": partial(features._hint, (2, 3, 4, 5)),
    "oh": partial(features._oh, (2, 3, 4, 5), channels_last=True),
    "at": partial(features._at, (2, 3, 4, 5), (2, 3, 4, 5)),
}


@pytest.mark.parametrize("name", HALF)
def test_half_precision_cases_compute_the_same(name):
    torch.manual_seed(0)
    steps = HALF[name]("cpu", dtype=torch.bfloat16)
    values = {key: step().double().squeeze() for key, step in steps.items()}
    assert all(leaf.dtype == torch.bfloat16 for leaf in steps["ours"].leaves)
    torch.testing.assert_close(values["ours"], values["reference"], rtol=1e-5, atol=0)
    torch.testing.assert_close(values["ours"], values["eager"], rtol=5e-2, atol=0)  # theirs round at every step


def test_a_record_names_the_gpu(monkeypatch):
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, L2_cache_size=50 * 2**20, total_memory=140 * 2**30
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU X")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(record, "copy_bandwidth", lambda device: 4.3e12)
    said = SimpleNamespace(stdout="580.159.03\n580.159.03\n")
    monkeypatch.setattr(record.subprocess, "run", lambda *_, **__: said)
    about = record.conditions("cuda")
    assert (about["processor"], about["driver"], about["capability"]) == ("GPU X", "580.159.03", "9.0")
    assert (about["multiprocessors"], about["L2 MiB"], about["memory GiB"]) == (132, 50, 140.0)

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(record.subprocess, "run", missing)
    assert record.driver() == "unknown"
