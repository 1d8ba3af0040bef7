"""A session on a lent GPU, without a GPU: parts that fail, hang or lack a tool, its time, its archive."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import signal
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

from bench import ncu
from bench.cases import FAMILIES, of_family
from bench.gpu import __main__ as command
from bench.gpu import archive, plan, stopping
from bench.gpu import part as parts
from bench.gpu import session as sessions
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


def test_a_program_that_can_not_be_executed_fails_alone(tmp_path):
    (tmp_path / "broken").write_text("no program")
    broken = Part("broken", [str(tmp_path / "broken")], 20)
    first, second = run_together([broken, python("print('right')")], tmp_path, "cpu")
    assert (first.result, second.result) == ("FAILED", "ok")
    assert first.detail == f"{tmp_path / 'broken'}: Permission denied"


def test_a_log_that_can_not_be_summed_up_is_quoted(tmp_path):
    outcome = run(python("print('of another version')", detail=lambda log: log.split("ERROR")[1]), tmp_path)
    assert outcome.result == "ok"
    assert outcome.detail.startswith("of another version (not summed up: IndexError")


def test_a_process_that_does_not_end_is_left(tmp_path, monkeypatch):
    """It may wait in a broken driver, where no signal reaches it."""
    monkeypatch.setattr(parts, "PATIENCE", 0.1)
    monkeypatch.setattr(parts.os, "killpg", lambda group, signum: killed.append(group))
    killed: list[int] = []
    assert run(python(HANGS, limit=1), tmp_path).result == "TIMED OUT"
    monkeypatch.undo()
    os.killpg(killed[0], signal.SIGKILL)


def test_a_log_without_end_is_read_from_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "LOG_LIMIT", 100)
    assert run(python("print('x' * 10**6); print('last')"), tmp_path).detail == "last"
    assert len(tail(tmp_path, "part")) <= 100
    assert tail(tmp_path, "no such part") == ""


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


def session(tmp_path: Path, stages: list[tuple[Part, ...]], seconds: float = 60.0) -> sessions.Session:
    folder, output = tmp_path / "session", tmp_path / "output"
    (folder / "records").mkdir(parents=True)
    output.mkdir()
    made = sessions.Session("first", "cpu", folder, output, seconds)
    made.execute(stages)
    return made


def results(made: sessions.Session) -> dict[str, str]:
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
    monkeypatch.setattr(sessions, "SAVE_EVERY", 0.0)
    seen = []
    save = sessions.Session.save
    monkeypatch.setattr(sessions.Session, "save", lambda self: (save(self), seen.append(names_in(self.target))))
    folder = tmp_path / "session"
    write = f"import pathlib, time; pathlib.Path({str(folder / 'records/x.json')!r}).write_text('1'); time.sleep(1)"
    session(tmp_path, [(python(write),)])
    assert len(seen) > 3 and "records/x.json" in seen[-3]


def test_the_command_leaves_one_archive_and_prints_the_ends_of_failed_logs(tmp_path, monkeypatch, capsys):
    broken = python("import sys; print('why it failed'); sys.exit(3)", "broken")
    planned(tmp_path, monkeypatch, (broken,), (python("print('right')", "good"),))
    assert command.main() == 1
    said = capsys.readouterr().out
    assert "== end of broken.log" in said and "why it failed" in said and "end of good.log" not in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first.tar.gz"]


def planned(tmp_path: Path, monkeypatch, *stages: tuple[Part, ...]) -> Path:
    """Make the command run these stages. Return the folder of its archive."""
    monkeypatch.setitem(PLANS, "first", plan.Plan(1.0, lambda device, folder: list(stages)))
    monkeypatch.setattr(command, "CARRIED", tmp_path / "nothing")
    monkeypatch.setattr(command.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "out"), "--device", "cpu"])
    return tmp_path / "out"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_parts_and_leaves_an_archive(signum, tmp_path, monkeypatch, capsys):
    code = f"import os, signal, time; print('measured', flush=True); os.kill({os.getpid()}, {int(signum)}); {HANGS}"
    out, handler = planned(tmp_path, monkeypatch, (python(code),), (python("print('never')", "b"),)), None
    handler = signal.getsignal(signum)
    assert command.main() == 128 + signum
    assert f"stopped by {signal.Signals(signum).name}" in capsys.readouterr().err
    with tarfile.open(out / "first.tar.gz") as archived:
        assert b"measured" in archived.extractfile("part.log").read()
    assert signal.getsignal(signum) is handler
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_second_signal_does_not_stop_the_saving():
    with pytest.raises(stopping.Stopped) as stopped, stopping.stop_on_signals():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
    assert stopped.value.signum == signal.SIGTERM


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, capsys):
    """The parts run on, and what can't be archived stays where it was written."""
    out = planned(tmp_path, monkeypatch, (python("print('measured')"),))
    write = archive.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path.suffix == ".gz":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(archive, "write_atomically", full)
    assert command.main() == 1
    said = capsys.readouterr()
    assert "part                   ok" in said.out
    folder = Path(said.err.splitlines()[-1].rpartition("The files are in ")[2])
    assert "first.tar.gz: No space left on device" in said.err.splitlines()[-1]
    assert "measured" in (folder / "part.log").read_text()
    assert not list(out.iterdir())


def test_a_disk_that_has_space_again_is_written(tmp_path, monkeypatch):
    faults = [OSError(errno.ENOSPC, "No space left on device")]
    write = archive.write
    monkeypatch.setattr(archive, "write", lambda *where: write(*where) if not faults else raising(faults.pop()))
    made = session(tmp_path, [(python("print(1)"),)])
    assert made.unsaved is None and "part.log" in names_in(made.target)


def raising(error: Exception):
    raise error


def test_a_gpu_that_does_not_start_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "has_gpu", lambda: True)
    error = RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nFor debugging ...")
    monkeypatch.setattr(command, "architecture", lambda: raising(error))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert capsys.readouterr().err.endswith("the GPU does not start: " + str(error).splitlines()[0] + "\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "many"])
def test_minutes_are_a_number_above_zero(minutes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / "out"), "--device", "cpu", f"--minutes={minutes}"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument --minutes: invalid minutes value: '{minutes}'")


@pytest.mark.parametrize("place", ["a file", "below a file", "an archive"])
def test_an_output_that_would_be_lost_is_refused(place, tmp_path, monkeypatch, capsys):
    output = {"a file": "file", "below a file": "file/out", "an archive": "."}[place]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "first.tar.gz").write_text("measured")
    monkeypatch.setattr(sys, "argv", ["bench.gpu", str(tmp_path / output), "--device", "cpu"])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"OUTPUT can't be written: {tmp_path}" in said
    assert ("of an earlier run; name another folder" in said) == (place == "an archive")
    assert (tmp_path / "first.tar.gz").read_text() == "measured"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "first.tar.gz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "PyTorch finds no GPU"),
        (["--device", "cpu", "--parts", "nothing"], "invalid choice: 'nothing'"),
        (["--device", "cpu", "--parts", "peers"], "--parts peers is a part of the second run, and this is the first"),
        (["--device", "cpu", "--second", "--parts", "load", "table"], "--parts table is a part of the first run"),
    ],
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


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_wheels_are_left_out(damage, tmp_path, capsys):
    path = tmp_path / "wheels" / "some-1-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("some/__init__.py", "value = 7")
    content = path.read_bytes()
    path.write_bytes(content[:60] if damage == "cut" else content.replace(b"value = 7", b"value = 8"))
    assert command.unpack_wheels(tmp_path, tmp_path / "site") == []
    assert capsys.readouterr().err.startswith("some-1-py3-none-any.whl is left out: ")
    assert not (tmp_path / "site").exists()


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
