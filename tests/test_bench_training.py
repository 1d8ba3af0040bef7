"""The benchmarks of whole steps and of growth: both loops train the same, and records are complete."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from bench import __main__ as command
from bench import levels, readme, record, scaling
from bench.check import compare
from bench.eager import training as eager
from bench.measure import Effort
from bench.training import ours, suite, worker
from bench.training.cases import CASES, TrainingCase
from bench.training.split import PARTS, Split, shares
from bench.training.worker import OURS, USUAL
from sftn_fast.config import EngineConfig
from sftn_fast.data import Batch
from sftn_fast.data.source import Images

EFFORT = Effort(turns=3, seconds=0.0, compile=False)
ABOUT = {"device": "cpu", "threads": 1, "processor": "P", "simd": "S", "torch": "T", "date": "D"}


@pytest.fixture
def few_images(monkeypatch):
    few = Images(torch.zeros(32, 3, 32, 32, dtype=torch.uint8), torch.arange(32))
    for module in (eager, ours):
        monkeypatch.setattr(module, "images", lambda: few)


def step_of(method: str, *, plain: bool) -> Callable[[torch.Tensor, torch.Tensor], None]:
    torch.manual_seed(0)
    case = TrainingCase(method, "wrn_16_1", "resnet8", 8)
    if plain:
        _, step = eager.training(case)
        return lambda images, index: step([images, index, index])
    _, step = ours.training(case, EngineConfig(device="cpu"))
    return lambda images, index: step(Batch(images, index, index))


@pytest.mark.parametrize("method", ["kd", "rkd", "sftn"])
def test_both_loops_take_the_same_step(method, few_images, monkeypatch):
    learned: dict[bool, list[torch.Tensor]] = {}
    for plain in (True, False):
        with monkeypatch.context() as patch:
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


@pytest.mark.parametrize("method", ["kd", "crd", "sftn"])  # RKD's loop has sizes that depend on values
def test_the_usual_loop_leaves_nothing_on_the_host(method, few_images, monkeypatch):
    """Run on the meta device, which computes nothing but refuses tensors of other devices, as a GPU does."""
    updates = []
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 1.0)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: updates.append(self.param_groups[0]["params"]))
    _, step = eager.training(TrainingCase(method, "wrn_16_1", "resnet8", 8), "meta")
    batch = [torch.zeros(8, 3, 32, 32), *(torch.zeros(8, dtype=torch.int64) for _ in range(2))]
    step([*batch, torch.zeros(8, 16, dtype=torch.int64)] if method == "crd" else batch)
    (parameters,) = updates
    assert {p.device.type for p in parameters} == {p.grad.device.type for p in parameters} == {"meta"}


def test_the_usual_loop_has_the_layout_of_matrix_units_as_an_option(few_images, monkeypatch):
    seen = []
    forward = eager.models.StagedNet.forward_features
    monkeypatch.setattr(
        eager.models.StagedNet,
        "forward_features",
        lambda net, images: (seen.append((net, images)), forward(net, images))[1],
    )
    for options in USUAL["cuda"].values():
        _, step = eager.training(TrainingCase("kd", "resnet8", "resnet8", 8), **options)
        step([torch.randn(8, 3, 32, 32), torch.arange(8), torch.arange(8)])
        of_weights = {w.is_contiguous(memory_format=torch.channels_last) for net, _ in seen for w in four_dim(net)}
        of_images = {images.is_contiguous(memory_format=torch.channels_last) for _, images in seen}
        assert of_images == {options.get("channels_last", False)}
        assert of_weights == {True} if options else False in of_weights
        seen.clear()


def four_dim(net: torch.nn.Module) -> list[torch.Tensor]:
    return [weight for weight in net.parameters() if weight.dim() == 4]


@pytest.mark.parametrize(
    "options", [options for device in OURS.values() for options in device.values() if "compile" not in options]
)
def test_ours_takes_a_step_with_the_options_of_every_device(options, few_images):
    batches, step = ours.training(TrainingCase("kd", "wrn_16_1", "resnet8", 8), EngineConfig(device="cpu", **options))
    for _ in range(2):
        step(next(batches))


@pytest.mark.parametrize("device", OURS)
def test_every_device_has_ours(device):
    assert "ours" in OURS[device] and "eager" not in OURS[device]
    assert set(suite.HOW) == set(suite.UNCOUNTED) == set(OURS)


def test_steps_are_timed_one_by_one_or_together(monkeypatch):
    now = [0.0]

    def train() -> None:
        now[0] += 1 + now[0]  # 1, 2, 4 seconds

    monkeypatch.setattr("bench.training.worker.time.perf_counter", lambda: now[0])
    assert worker.step_by_step(train, 3, None) == {"seconds": [1.0, 2.0, 4.0], "split": []}
    now[0] = 0.0
    split = Split()
    assert worker.step_by_step(train, 2, split)["split"] == [{"rest": 1.0}, {"rest": 2.0}]
    now[0] = 0.0
    assert worker.all_at_once(train, 3, "cpu") == {"seconds": [7 / 3], "split": []}


class FakeTrainer:
    """A trainer with steps of a hundredth of a second. Its process ends at turn ``ends``, counted from 1."""

    ends: ClassVar[dict[str, int]] = {}
    events: ClassVar[list[tuple[str, str]]] = []

    def __init__(self, case, name, device):
        self.name, self.turns, self.split, self.peak_bytes, self.first_step = name, [], [], 2**20, 0.5
        self.shares = {}

    def profile(self):
        self._maybe_end("profile")
        self.shares = {"convolutions": 0.75}

    def prepared(self):
        self.events.append((self.name, "prepared"))

    def begin(self):
        self.events.append((self.name, "begin"))
        self._maybe_end(0)

    def _maybe_end(self, turn):
        if self.ends.get(self.name) == turn:
            raise RuntimeError("out of memory")

    seconds = suite.Trainer.seconds

    def turn(self):
        self.turns.append([0.01 if self.name == "eager" else 0.005])
        self._maybe_end(len(self.turns))

    def close(self):
        self.said = []


@pytest.mark.parametrize(
    ("ends", "measured"),
    [
        ({}, ["eager", "ours"]),
        ({"ours": 0}, ["eager"]),
        ({"ours": 2}, ["eager"]),
        ({"eager": 0}, []),
        ({"eager": 2}, []),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_implementation_that_ends_costs_only_its_row(device, ends, measured, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "Trainer", FakeTrainer)
    monkeypatch.setattr(FakeTrainer, "ends", ends)
    rows = list(suite.measure_case(CASES[0], ["eager", "ours"], EFFORT, device))
    assert [row["implementation"] for row in rows if "error" not in row] == measured
    assert {row["implementation"]: row["error"] for row in rows if "error" in row} == dict.fromkeys(
        ends, "RuntimeError: out of memory"
    )
    for row in rows:
        assert "error" in row or row["ratio"] == (1.0 if row["implementation"] == "eager" else 2.0)
        columns = suite.header(device).splitlines()[0].count("|")
        assert "error" in row or suite.line(row).count("|") == columns
    if measured:
        suite.write(f"training-{device}", ABOUT | {"device": device}, rows, tmp_path)
        page = (tmp_path / f"training-{device}.md").read_text()
        assert suite.HOW[device] in page and all(suite.line(row) in page for row in rows)


def test_whole_steps_end_when_their_ratio_is_known(monkeypatch):
    monkeypatch.setattr(suite, "Trainer", FakeTrainer)
    monkeypatch.setattr(suite, "MIN_TURNS", 9)
    known = replace(EFFORT, within=0.02)
    for effort, turns in ((EFFORT, 9), (known, 6)):
        eager, ours = suite.measure_case(CASES[0], ["eager", "ours"], effort)
        assert eager["n"] == ours["n"] == turns
        assert ours["interval"] == [2, 2] and "interval" not in eager


def test_no_step_is_taken_while_another_implementation_prepares(monkeypatch):
    monkeypatch.setattr(suite, "Trainer", FakeTrainer)
    monkeypatch.setattr(FakeTrainer, "events", [])
    list(suite.measure_case(CASES[0], ["eager", "ours"], EFFORT))
    assert FakeTrainer.events == [(name, what) for what in ("prepared", "begin") for name in ("eager", "ours")]


def test_a_turn_of_one_step_has_no_other_before_it(monkeypatch):
    asked: list[tuple[int, int]] = []
    trainer = suite.Trainer.__new__(suite.Trainer)
    trainer._device, trainer.turns, trainer.split = "cpu", [], []
    monkeypatch.setattr(
        suite.Trainer, "_steps", lambda self, *counts: (asked.append(counts), {"seconds": [1.0], "split": []})[1]
    )
    for seconds in (0.25, 3.0):
        trainer.step_seconds = seconds
        trainer.turn()
    trainer._device = "cuda"
    trainer.turn()
    assert asked == [(1, 4), (0, 1), (suite.UNCOUNTED["cuda"], 1)]
    assert trainer.seconds == [1.0] * 3


def test_variants_that_no_table_shows_are_measured_on_request(monkeypatch):
    measured: list[list[str]] = []
    monkeypatch.setattr(suite, "measure_case", lambda case, names, *_: measured.append(names) or [])
    for further in (False, True):
        list(suite.measure({"device": "cpu"}, replace(EFFORT, compile=True, further=further, cases=("KD", "CRD"))))
    asked = replace(EFFORT, compile=True, further=False, implementations=("ours, compile",), cases=("KD: wrn",))
    list(suite.measure({"device": "cpu"}, asked))
    pair = ["eager", "ours"]
    assert measured[:4] == [[*pair, "ours, bf16"], pair, pair, pair]
    assert measured[4:8] == [[*pair, "ours, NCHW", "ours, bf16", "ours, compile"], pair, pair, pair]
    assert measured[8:] == [["eager", "ours, compile"]]


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


def test_shares_of_the_layers_in_a_step():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    x = torch.rand(8, 3, 32, 32)
    found = shares(lambda: (net(x).sum() + torch.logsumexp(x, 1).sum()).backward())
    assert list(found) == ["convolutions", "BatchNorm", "ReLU"]
    assert all(share > 0.01 for share in found.values()) and sum(found.values()) < 1


def test_shares_are_those_of_ours(monkeypatch):
    monkeypatch.setattr(suite, "Trainer", FakeTrainer)
    eager, ours = suite.measure_case(CASES[0], ["eager", "ours"], EFFORT)
    assert "shares" not in eager and ours["shares"] == {"convolutions": 0.75}
    assert suite._notes(ours)[0] == "convolutions 75%"
    monkeypatch.setattr(FakeTrainer, "ends", {"ours": "profile"})
    _, ours = suite.measure_case(CASES[0], ["eager", "ours"], EFFORT)
    assert ours["error"] == "RuntimeError: out of memory"


@pytest.mark.slow
def test_implementations_train_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(suite, "TURN", 0.05)
    case = TrainingCase("kd", "resnet8", "resnet8", 8)
    *rows, failed = suite.measure_case(case, ["eager", "ours", "no such"], EFFORT)
    assert [row["implementation"] for row in rows] == ["eager", "ours"]
    for row in rows:
        assert row["n"] >= 3 and row["ratio"] > 0 and row["peak_bytes"] > 2**26 and row["said"] == []
        assert all(row["split"][part] > 0 for part in ("frozen forward", "forward", "backward"))
    assert rows[1]["shares"]["convolutions"] > 0.1
    assert "no such" in failed["error"]
    assert suite.line(failed).startswith("| KD: resnet8")


def rows_of_a_step(ratio: float) -> list[dict]:
    split = dict.fromkeys(PARTS, 1.0)
    times = {"n": 3, "p20": 1.0, "p50": 2.0, "p80": 3.0, "peak_bytes": 2**30, "first_step": 5.0, "split": split}
    times["said"] = ["engine.compile: not compiled"]
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
    assert "KD, ours, compile: engine.compile: not compiled" in page
    assert (tmp_path / "training-cpu.png").stat().st_size > 5000
    assert "| KD | 100 | 150 | **1.50** | 1,024.0 MiB / 1,024.0 MiB |" in readme.steps(tmp_path)
    rows[1]["shares"] = {"convolutions": 0.746, "ReLU": 0.05}
    suite.write("training-cpu", ABOUT, rows, tmp_path)
    assert "| convolutions / ReLU in ours |" in readme.steps(tmp_path)
    assert "1,024.0 MiB / 1,024.0 MiB | 75% / 5% |" in readme.steps(tmp_path)
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


def test_a_process_does_not_count_the_memory_of_the_one_that_starts_it():
    held = torch.ones(2**28, dtype=torch.uint8)
    alone = [sys.executable, "-c", "pass"]
    through = subprocess.run(
        [sys.executable, "-c", scaling.PEAK_OF_CHILDREN, *alone], capture_output=True, check=True, text=True
    )
    assert 2**20 < 1024 * int(through.stdout) < len(held) < worker.peak_resident()


def test_ranks_and_the_largest_bank_are_measured_on_request(monkeypatch):
    monkeypatch.setattr(scaling, "_rows", lambda series, build, size, effort: iter([size]))
    monkeypatch.setattr(scaling, "_ranks", lambda: iter(["ranks"]))
    monkeypatch.setattr(scaling, "_fits", lambda size: True)
    few, everything = (list(scaling.measure({}, replace(EFFORT, further=further))) for further in (False, True))
    assert scaling.LARGEST in few and set(everything) - set(few) == {"ranks", scaling.BANKS[-1]}


def test_ranks_take_turns(monkeypatch):
    asked = []
    monkeypatch.setattr(scaling, "_train", lambda ranks: (asked.append(ranks), (1000.0 * ranks, 2**20 * len(asked)))[1])
    one, two = scaling._ranks()
    assert asked == [1, 2] * scaling.RANK_TURNS
    assert (one["size"], two["size"], one["n"], two["n"]) == (1, 2, scaling.RANK_TURNS, scaling.RANK_TURNS)
    assert one["p50"] == two["p50"] == 1e3 * scaling.IMAGES_A_RANK
    assert two["peak_bytes"] == 2**20 * len(asked)
    assert {one["case"], two["case"]} == {scaling.RANKS_SERIES}


def test_a_page_without_marks_keeps_its_text(tmp_path, monkeypatch):
    monkeypatch.setitem(readme.SECTIONS, "kernels", lambda folder: "speeds")
    begin, end = readme.marks("kernels")
    plain = f"a {begin} old {end} b"
    assert readme.refreshed("a b", tmp_path) == "a b"
    assert readme.refreshed(plain, tmp_path) == f"a {begin}\n\nspeeds\n\n{end} b"
    steps_begin, steps_end = readme.marks("steps")
    marked = f"{plain} {steps_begin} old {steps_end} c"
    with pytest.raises(FileNotFoundError, match="training-cpu"):
        readme.refreshed(marked, tmp_path)
    suite.write("training-cpu", ABOUT, rows_of_a_step(1.5), tmp_path)
    assert "**1.50**" in readme.refreshed(marked, tmp_path)
    with pytest.raises(ValueError):
        readme.refreshed(f"{marked} {steps_begin}", tmp_path)


def test_losses_and_steps_with_the_smallest_gain_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "FAMILIES", ("made_up",))
    times = {"eager": 9.0, "compile": 6.0, "ours": 3.0}
    rows = [{"case": "A", "implementation": name, "p50": p50} for name, p50 in times.items()]
    rows += [{"case": "B", "implementation": name, "p50": p50} for name, p50 in {"eager": 4.5, "ours": 3.0}.items()]
    rows.append({"case": "C", "implementation": "ours", "error": "RuntimeError: out of memory"})
    record.save("made_up-cpu-avx2", ABOUT | {"level": "avx2"}, rows, [], tmp_path)
    steps = rows_of_a_step(1.5)
    suite.write("training-cpu", ABOUT, steps, tmp_path)
    lines = readme.limits(tmp_path).splitlines()
    assert lines[0].endswith(": B at avx2, 1.5; A at avx2, 2.0.")
    assert lines[1].endswith(": KD, 1.50 times as fast.") and lines[2].endswith(": none.")
    steps[1]["peak_bytes"] += 2**20
    suite.write("training-cpu", ABOUT, steps, tmp_path)
    assert readme.limits(tmp_path).endswith(": KD, 1,024.0 MiB / 1,025.0 MiB.")


def test_the_command_records_a_suite(tmp_path, monkeypatch, capsys):
    rows = rows_of_a_step(1.5)

    def measure(about, effort):
        assert about["device"] == "cpu" and effort.seconds == 7 and not effort.compile
        yield from rows

    monkeypatch.setattr(suite, "measure", measure)
    options = ["bench", "training", "--device", "cpu", "--seconds", "7", "--no-compile", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit) as end:
        command.main()
    assert not end.value.code
    assert record.read("training-cpu", tmp_path)[1] == rows
    assert suite.line(rows[1]) in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*options, "--check"])
    for level, said in (
        (levels.of(record.conditions("cpu")), "ok      KD: 1.50 times eager"),
        ("other", "at level other"),
    ):
        record.save("training-cpu", ABOUT | {"level": level}, rows, [], tmp_path)
        with pytest.raises(SystemExit) as end:
            command.main()
        assert not end.value.code
        assert said in capsys.readouterr().out


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
