"""The benchmark's own code: counts, records, and the verdict that a kernel is slower."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import bench.cases
import bench.family
from bench import __main__ as main
from bench import chart, host, loaders, readme, record, replay, scaling
from bench.cases import features, logits
from bench.cases.case import Case, Step
from bench.check import TOLERANCE, compare
from bench.family import Kernels, measure_case
from bench.measure import MIN_TURNS, Effort, Spread, cost, interleaved, peak_memory
from bench.training.worker import OURS, USUAL
from sftn_fast.ops import _capability

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
    about, suite = record.conditions("cpu"), Kernels(family)
    suite.write("squares-cpu", about, rows, tmp_path)
    assert record.read("squares-cpu", tmp_path) == (about, rows)
    page = (tmp_path / "squares-cpu.md").read_text()
    assert "squares-cpu.png" in page and bench.cases.note_on(family) in page
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
        for row in record.read(f"{family}-cpu")[1]:
            assert f"| {row['case']} |" in page, row["case"]
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
    assert [row["case"] for row in rows] == ["KD (64, 100)", "KD + CE (64, 100)"]
    assert all(row["ratio"] == round(row["ours"]["p20"] / row["empty"]["p20"], 2) for row in rows)
    host.write("host-cpu", {"device": "cpu"}, rows, tmp_path)
    assert record.read("host-cpu", tmp_path)[1] == rows
    assert all(host.line(row) in (tmp_path / "host-cpu.md").read_text() for row in rows)


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
        assert f"at level {level}, torch" in readme._where(about | {"level": level})


@pytest.mark.parametrize(
    ("device", "families"),
    [("cpu", [*main.SUITES]), ("cuda", [*bench.cases.FAMILIES, "training"])],
)
def test_the_command_measures_all_that_a_device_has(device, families, tmp_path, monkeypatch):
    measured: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(main, "run", lambda family, *_: (measured.append(family), ({}, []))[1])
    monkeypatch.setattr(main, "SUITES", dict.fromkeys(main.SUITES, SimpleNamespace(write=lambda *_: None)))
    monkeypatch.setattr("sys.argv", ["bench", "--device", device, "--folder", str(tmp_path)])
    with pytest.raises(SystemExit):
        main.main()
    assert measured == families


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
    failed, *measured = record.read("logits-cpu-try", tmp_path)[1]
    assert failed == {"case": "large", "implementation": "ours", "error": "RuntimeError: out of memory"}
    assert [row["implementation"] for row in measured] == ["eager", "reference", "ours"]


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
