"""A session on a lent GPU, without a GPU: parts that fail, hang or lack a tool, its time, its archive."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gpu_context
import pytest
import torch

from bench import ncu, record
from bench.cases import FAMILIES, of_family
from bench.gpu import __main__ as command
from bench.gpu import archive, libraries, pack, page, plan
from bench.gpu import read as reading
from bench.gpu.part import ROOT, Part, run_together, tail
from bench.gpu.plan import PLANS, sanitizer_detail


def python(code: str, name: str = "part", **options) -> Part:
    return Part(name, [sys.executable, "-S", "-c", code], **{"limit": 20, **options})


def run(part: Part, folder: Path, left: float = 100.0):
    (outcome,) = run_together([part], folder, "cpu", left)
    return outcome


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as opened:
        return opened.getnames()


HANGS = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '600'])"


# ---- parts ----


def test_a_part_is_logged_and_summed_up(tmp_path):
    outcome = run(python("print('one'); print('two of two right')"), tmp_path)
    assert (outcome.result, outcome.detail) == ("ok", "two of two right")
    assert "one\n" in (tmp_path / "part.log").read_text()


def test_a_part_may_fail(tmp_path):
    outcome = run(python("raise SystemExit('it broke')"), tmp_path)
    assert (outcome.result, outcome.detail) == ("FAILED", "it broke")
    assert tail(tmp_path, "part").endswith("it broke")


def test_a_part_may_hang(tmp_path):
    """The children of a part end with it."""
    start = time.monotonic()
    outcome = run(python(HANGS, limit=2), tmp_path)
    assert (outcome.result, outcome.detail) == ("TIMED OUT", "begun")
    assert time.monotonic() - start < 10


def test_a_part_ends_with_the_time_of_all(tmp_path):
    outcome = run(python(HANGS), tmp_path, left=2.5)
    assert (outcome.result, outcome.detail) == ("TIMED OUT", "begun")
    outcome = run(python("print('never')"), tmp_path, left=1.0)
    assert (outcome.result, outcome.detail) == ("not run", "no time left")


@pytest.mark.parametrize("need", ["no-such-program", "module:no_such_module", "module:no_such_package.module"])
def test_a_part_may_miss_a_tool(tmp_path, need):
    outcome = run(python("print('never')", needs=(need,)), tmp_path)
    assert outcome.result == "not run"
    assert outcome.detail == f"{need.removeprefix('module:')} is not installed"


def test_parts_run_side_by_side(tmp_path):
    """Each waits for the other's file, so that one after the other would never end."""
    code = "import pathlib, time\npathlib.Path({!r}).touch()\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)"
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    parts = [python(code.format(one, other), "a"), python(code.format(other, one), "b"), python(HANGS, "c", limit=1)]
    assert [outcome.result for outcome in run_together(parts, tmp_path, "cpu")] == ["ok", "ok", "TIMED OUT"]


# ---- plans ----


@pytest.fixture(params=PLANS)
def stages(request, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "architecture", lambda: "9.0")
    return {device: PLANS[request.param].stages(device, tmp_path) for device in ("cpu", "cuda")}


def test_every_part_has_a_command_that_exists(stages):
    for of_device in stages.values():
        parts = [part for stage in of_device for part in stage]
        parts += [part.fallback for part in parts if part.fallback]
        assert len({part.name for part in parts}) == len(parts)
        for part in parts:
            assert all((ROOT / word).exists() for word in part.command if re.fullmatch(r"tests/\S+", word))
            modules = [after for word, after in zip(part.command, part.command[1:], strict=False) if word == "-m"]
            own = [module for module in modules if module.startswith(("bench", "sftn_fast"))]
            assert all(importlib.util.find_spec(module) for module in own)


def test_the_first_run_has_time_for_all_its_parts(monkeypatch, tmp_path):
    """A part that takes all its time leaves the others theirs, also after a build."""
    monkeypatch.setattr(plan, "architecture", lambda: "9.0")
    limits = [
        max(part.limit + (part.fallback.limit if part.fallback else 0) for part in stage)
        for stage in PLANS["first"].stages("cuda", tmp_path)
    ]
    assert sum(limits) <= 60 * PLANS["first"].minutes <= 9.5 * 60


@pytest.mark.parametrize("name", [*plan.SHOWN, *plan.PROFILED])
def test_named_cases_exist(name):
    names = [case.name for family in plan.FAMILIES for case in of_family(family)]
    assert any(case.startswith(name) for case in names)
    assert sorted(plan.FAMILIES) == sorted(FAMILIES)


def test_benchmarks_understand_what_the_plans_ask(stages, monkeypatch):
    from bench import __main__ as bench

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = [part.command for of_device in stages.values() for stage in of_device for part in stage]
    for words in (words[3:] for words in asked if words[1:3] == ["-m", "bench"]):
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        bench.parse()


# ---- sessions ----


def session(tmp_path: Path, stages: list[tuple[Part, ...]], seconds: float = 60.0) -> command.Session:
    folder, output = tmp_path / "session", tmp_path / "output"
    (folder / "records").mkdir(parents=True)
    output.mkdir()
    made = command.Session("first", "cpu", folder, output, seconds)
    made.execute(stages)
    return made


def results(made: command.Session) -> dict[str, str]:
    return {outcome.name: outcome.result for outcome in made.outcomes}


def test_without_kernels_the_run_ends(tmp_path):
    build = python("raise SystemExit('no compiler')", "build")
    load = python("raise SystemExit('a symbol is missing')", "load", fallback=build, essential=True)
    made = session(tmp_path, [(load,), (python("print('never')"),)])
    assert results(made) == {"load": "FAILED", "build": "FAILED"}
    assert sorted(names_in(made.target)) == ["build.log", "load.log", "session.json"]


def test_a_build_takes_the_place_of_what_does_not_load(tmp_path):
    load = python("raise SystemExit(1)", "load", fallback=python("print('built')", "build"), essential=True)
    made = session(tmp_path, [(load,), (python("print('measured')"),)])
    assert results(made) == {"load": "FAILED", "build": "ok", "part": "ok"}
    assert command._replaced(made.outcomes[0], made.outcomes)


def test_a_part_that_fails_leaves_the_others(tmp_path):
    stages = [(python("raise SystemExit(1)", "a"),), (python(HANGS, "b", limit=1),), (python("print(1)", "c"),)]
    assert results(session(tmp_path, stages)) == {"a": "FAILED", "b": "TIMED OUT", "c": "ok"}


def test_a_session_holds_its_time(tmp_path):
    start = time.monotonic()
    made = session(tmp_path, [(python(HANGS, "a"),), (python("print('never')", "b"),)], seconds=2.5)
    assert results(made) == {"a": "TIMED OUT", "b": "not run"}
    assert time.monotonic() - start < 15


def test_what_is_measured_is_in_the_archive_at_once(tmp_path, monkeypatch):
    """A session that is killed has left what it knew until then."""
    monkeypatch.setattr(command, "SAVE_EVERY", 0.0)
    seen = []
    save = command.Session.save
    monkeypatch.setattr(command.Session, "save", lambda self: (save(self), seen.append(names_in(self.target))))
    folder = tmp_path / "session"
    write = f"import pathlib, time; pathlib.Path({str(folder / 'records/x.json')!r}).write_text('1'); time.sleep(1)"
    session(tmp_path, [(python(write),)])
    assert len(seen) > 3 and "records/x.json" in seen[-3]


def test_the_command_leaves_one_archive_and_prints_the_ends_of_failed_logs(tmp_path, monkeypatch, capsys):
    parts = [
        (python("import sys; print('why it failed'); sys.exit(3)", "broken"),),
        (python("print('right')", "good"),),
    ]
    monkeypatch.setitem(PLANS, "first", plan.Plan(1.0, lambda device, folder: parts))
    monkeypatch.setattr(command, "CARRIED", tmp_path / "nothing")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "out"), "--device", "cpu"])
    assert command.main() == 1
    said = capsys.readouterr().out
    assert "== end of broken.log" in said and "why it failed" in said and "end of good.log" not in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first.tar.gz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "PyTorch finds no GPU"), (["--device", "cpu", "--parts", "nothing"], "invalid choice: 'nothing'")],
)
def test_the_command_refuses(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "out"), *options])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_carried_wheels_are_unpacked(tmp_path):
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "some-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some/__init__.py", "value = 7")
    assert command.unpack_wheels(tmp_path, tmp_path / "site") == ["some-1-py3-none-any.whl"]
    assert (tmp_path / "site" / "some" / "__init__.py").read_text() == "value = 7"


# ---- libraries ----


@pytest.fixture
def carried(tmp_path) -> Path:
    built = tmp_path / "built"
    built.mkdir()
    for name in libraries.NAMES:
        (built / name).write_bytes(name.encode())
    pack.pack(tmp_path / "carried", built, "9.0")
    return tmp_path / "carried"


@pytest.mark.parametrize(("device", "names"), [("cuda", ["_C.so", "_C_cuda.so"]), ("cpu", ["_C.so"])])
def test_carried_libraries_are_put_where_none_are(device, names, carried, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert libraries.install(carried, device, package) is None
    assert sorted(path.name for path in package.iterdir()) == names
    (package / "_C.so").write_text("built here")
    libraries.install(carried, device, package)
    assert (package / "_C.so").read_text() == "built here"


def test_libraries_of_other_sources_are_not_used(carried, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    assert "are not of these sources" in libraries.install(carried, "cuda", package, sources="others")
    assert "no libraries were carried" in libraries.install(tmp_path / "nowhere", "cuda", package)
    assert not list(package.iterdir())


def test_every_source_decides(tmp_path):
    (tmp_path / "csrc").mkdir()
    seen = set()
    for name in ("setup.py", "csrc/a.h", "csrc/b.cu"):
        seen.add(libraries.digest(tmp_path))
        (tmp_path / name).write_text("1")
    (tmp_path / "csrc/b.cu").write_text("2")
    assert libraries.digest(tmp_path) not in seen and len(seen) == 3


def test_the_kernels_of_this_machine_are_tried(capfd, monkeypatch):
    assert libraries.works("cpu") is None
    assert "its kernels run" in capfd.readouterr().out
    monkeypatch.setattr(libraries, "TRY", "raise SystemExit('a symbol is missing')")
    assert libraries.works("cpu") == "a symbol is missing"


def test_what_travels_is_what_git_knows():
    files = {str(path.relative_to(ROOT)) for path in pack.travelling()}
    assert {"setup.py", "bench/gpu/pack.py", "csrc/cuda/logits.cu"} <= files
    assert not any(name.endswith(".so") or name.startswith("build/") for name in files)
    assert pack.megabytes(pack.travelling()) < pack.LIMIT_MB


# ---- archives ----


def finished(tmp_path: Path, device: str = "cuda", ratio: float = 4.0) -> Path:
    """Write the archive of a session that measured one case."""
    folder = tmp_path / "session"
    about = {"date": "2026-12-01", "device": device, "processor": "GPU X", "driver": "580.1", "graphs": True}
    about |= {"threads": 16, "torch": torch.__version__}
    times = {"n": 3, "p20": 1.0, "p80": 3.0, "peak_bytes": 2**20, "launches": 1, "bandwidth_share": None}
    rows = [
        {"case": "KD", "implementation": "eager", "p50": 2.0 * ratio, "ratio": 1.0, "graph": False, **times},
        {"case": "KD", "implementation": "ours", "p50": 2.0, "ratio": ratio, "graph": True, **times},
    ]
    record.save_rows(f"logits-{device}-graph", about, rows, folder / "records")
    (folder / "ncu.md").write_text("| kernel |\n")
    outcomes = [{"name": "table", "result": "ok", "seconds": 20.0, "detail": "90 of 90 cases right"}]
    said = {"run": "first", "device": device, "date": "2026-12-01", "conditions": about, "outcomes": outcomes}
    (folder / "session.json").write_text(json.dumps(said))
    archive.write(folder, tmp_path / "first.tar.gz")
    return tmp_path / "first.tar.gz"


def test_an_archive_is_read_back(tmp_path):
    results = tmp_path / "results"
    assert reading.read(finished(tmp_path), results) == ["logits-cuda-graph"]
    about, rows = record.read("logits-cuda-graph", results)
    assert (about["processor"], about["driver"], about["torch"]) == ("GPU X", "580.1", torch.__version__)
    assert [row["ratio"] for row in rows] == [1.0, 4.0]
    assert "| KD | eager\\* |" in (results / "logits-cuda-graph.md").read_text()
    assert (results / "logits-cuda-graph.png").stat().st_size > 5000
    assert "90 of 90 cases right" in (results / "session-cuda-first.md").read_text()
    assert (results / "kernels-cuda.md").exists()
    shown = page.measured(results)
    assert "| KD | 8 us\\* | - | - | 2 us | **4.0** |" in shown and "GPU X, driver 580.1" in shown
    assert "have run on GPU X with driver 580.1 on 2026-12-01" in page.status(results)


def test_without_a_record_the_pages_say_that_no_gpu_has_run(tmp_path):
    assert page.measured(tmp_path) == page.NONE and page.status(tmp_path) == page.BEFORE


def test_one_command_reads_and_redraws(tmp_path, monkeypatch, capsys):
    results, refreshed = tmp_path / "results", []
    monkeypatch.setattr(record, "RESULTS", results)
    monkeypatch.setattr(reading, "refresh", lambda: refreshed.append(sorted(path.name for path in results.iterdir())))
    monkeypatch.setattr(sys, "argv", ["read", str(finished(tmp_path)), "--results", str(results)])
    reading.main()
    assert "logits-cuda-graph.json" in refreshed[0]
    assert "logits-cuda-graph" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["rehearsal", "cut", "text", "nothing", "other"])
def test_what_is_no_record_of_a_gpu_is_refused(damage, tmp_path, monkeypatch, capsys):
    source, results = finished(tmp_path, "cpu" if damage == "rehearsal" else "cuda"), tmp_path / "results"
    monkeypatch.setattr(record, "RESULTS", results)
    if damage == "cut":
        source.write_bytes(source.read_bytes()[:200])
    elif damage == "text":
        source.write_text("no archive")
    elif damage == "nothing":
        source.unlink()
    elif damage == "other":
        with tarfile.open(source, "w:gz") as other:
            other.add(__file__, "session.py")
    monkeypatch.setattr(sys, "argv", ["read", str(source), "--results", str(results)])
    with pytest.raises(SystemExit, match="2"):
        reading.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert str(source) in said and ("rehearsal" in said if damage == "rehearsal" else "no archive of a session" in said)
    assert not results.exists()


def test_an_archive_stays_small_and_leaves_half_files_to_nobody(tmp_path, monkeypatch):
    folder = tmp_path / "session"
    record.save_rows("logits-cuda", {}, [], folder / "records")
    (folder / "session.json").write_text("{}")
    (folder / "long.log").write_text("x" * 5000)
    (folder / "short.log").write_text("x" * 500)
    (folder / "weights.safetensors").write_bytes(b"x")
    monkeypatch.setattr(archive, "LIMIT", 2000)
    assert archive.write(folder, tmp_path / "a.tar.gz") == ["long.log"]
    names = ["session.json", "records/logits-cuda.json", "short.log"]
    assert names_in(tmp_path / "a.tar.gz") == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "session"]


# ---- tools ----


def test_the_table_runs_without_pytest():
    code = (
        "import runpy, sys; sys.modules['pytest'] = None; runpy.run_path('tests/ops/on_cuda.py', run_name='__main__')"
    )
    words = [sys.executable, "-c", code, "--device", "cpu", "--dtypes", "float32", "--ops", "kd", "sftn"]
    environment = {"PYTHONPATH": str(ROOT / "tests" / "ops"), "PATH": ""}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "6 of 6 cases right on cpu", done.stderr


def test_a_function_that_dies_costs_its_own_cases(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tests" / "ops")
    on_cuda = importlib.import_module("on_cuda")

    ends = {"kd_loss": "6 of 6 cases right on cuda", "rkd_loss": "CUDA error: device-side assert triggered"}
    names = [next(name for name, op in on_cuda.TABLE.items() if op.function == function) for function in ends]
    output_of = on_cuda.output_of
    monkeypatch.setattr(on_cuda, "output_of", lambda words, patience: ends[on_cuda.TABLE[words[-1]].function])
    assert on_cuda.run_apart(names, ["float32", "float64"], ["5x9", "1x1"], "cuda", 1.0) == 1
    *said, last = capsys.readouterr().out.splitlines()
    assert sorted(said) == ["kd_loss: 6 of 6", "rkd_loss: 0 of 4", "rkd_loss: CUDA error: device-side assert triggered"]
    assert last == "6 of 10 cases right on cuda"
    assert output_of([sys.executable, "-S", "-c", HANGS], 0.5) == "not done after 0.5 s"


@pytest.mark.parametrize("broken", [False, True])
def test_a_test_that_breaks_the_gpu_ends_its_process(broken, monkeypatch):
    def synchronize() -> None:
        if broken:
            raise RuntimeError("CUDA error: device-side assert triggered")

    assert not gpu_context.is_broken()  # without a GPU in use
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert gpu_context.is_broken() == broken
    monkeypatch.undo()
    ended = []
    monkeypatch.setattr(gpu_context.os, "_exit", ended.append)
    monkeypatch.setattr(gpu_context.pytest, "exit", lambda why: ended.append(why))
    gpu_context.end_process(SimpleNamespace(workerinput={}))
    assert ended == [gpu_context.EXIT_CODE]
    gpu_context.end_process(SimpleNamespace())
    assert "no later test can pass in this process" in ended[1]


OURS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void sftn::<unnamed>::logits_forward_kernel<float>(sftn::LogitsParams<float>)+0x1a0
========= ERROR SUMMARY: 1 error
"""
THEIRS = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4>(int)+0x3a0
========= ERROR SUMMARY: 1 error
"""


def test_errors_of_our_kernels_are_told_from_others():
    assert sanitizer_detail(OURS) == "ERROR SUMMARY: 1 error; in our kernels: YES"
    assert sanitizer_detail(THEIRS) == "ERROR SUMMARY: 1 error; in our kernels: none"


NCU_CSV = """==PROF== Connected to process 7
logits KD + CE (64, 100)
"ID","Kernel Name","Grid Size","Metric Name","Metric Unit","Metric Value"
"0","logits_forward_kernel","(8, 1, 1)","gpu__time_duration.sum","ns","4,000"
"0","logits_forward_kernel","(8, 1, 1)","launch__registers_per_thread","register/thread","40"
"1","logits_forward_kernel","(8, 1, 1)","gpu__time_duration.sum","ns","6,000"
"""


def test_ncu_is_summed_up(tmp_path: Path):
    (tmp_path / "ncu.csv").write_text(NCU_CSV)
    assert ncu.summary(tmp_path / "ncu.csv", tmp_path / "ncu.md") == "1 kernels and grids, in ncu.md"
    table = (tmp_path / "ncu.md").read_text()
    assert "| logits_forward_kernel (8, 1, 1) | 2 | 5,000 |  |  |  |  | 40 |" in table
    assert ncu.summary(tmp_path / "none.csv", tmp_path / "ncu.md") is None
