"""`python -m bench.gpu` without a GPU: its handling of parts that fail."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import ncu
from bench.gpu import ROOT, Part, parts, run, sanitizer_detail


def python(code: str, **options) -> Part:
    return Part("part", [sys.executable, "-c", code], **{"limit": 20, **options})


def test_a_part_is_logged_and_summed_up(tmp_path):
    outcome = run(python("print('one'); print('two of two right')"), tmp_path, "cpu")
    assert (outcome.result, outcome.detail) == ("ok", "two of two right")
    assert "one\n" in (tmp_path / "part.log").read_text()


def test_a_part_may_fail(tmp_path):
    outcome = run(python("raise SystemExit('it broke')"), tmp_path, "cpu")
    assert (outcome.result, outcome.detail) == ("FAILED", "it broke")


def test_a_part_may_hang(tmp_path):
    """The children of a part end with it."""
    code = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '600'])"
    start = time.monotonic()
    outcome = run(python(code, limit=2), tmp_path, "cpu")
    assert (outcome.result, outcome.detail) == ("TIMED OUT", "begun")
    assert time.monotonic() - start < 10


def test_a_part_ends_with_the_time_of_all(tmp_path):
    code = "import subprocess; print('begun', flush=True); subprocess.run(['sleep', '600'])"
    outcome = run(python(code), tmp_path, "cpu", left=2.5)
    assert (outcome.result, outcome.detail) == ("TIMED OUT", "begun")
    outcome = run(python("print('never')"), tmp_path, "cpu", left=1.0)
    assert (outcome.result, outcome.detail) == ("not run", "no time left")


@pytest.mark.parametrize("need", ["no-such-program", "module:no_such_module"])
def test_a_part_may_miss_a_tool(tmp_path, need):
    outcome = run(python("print('never')", needs=(need,)), tmp_path, "cpu")
    assert outcome.result == "not run"
    assert outcome.detail == f"{need.removeprefix('module:')} is not installed"


def test_every_part_has_a_command_that_exists(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.architecture", lambda: "9.0")
    for device in ("cpu", "cuda"):
        names = [part.name for part in parts(device, tmp_path)]
        assert len(set(names)) == len(names)
        for part in parts(device, tmp_path):
            files = [word for word in part.command if word.endswith(".py")]
            assert all((ROOT / file).exists() for file in files)


def test_the_table_runs_without_pytest():
    code = (
        "import runpy, sys; sys.modules['pytest'] = None; runpy.run_path('tests/ops/on_cuda.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "--device", "cpu", "--dtypes", "float32", "--ops", "kd", "sftn"]
    environment = {"PYTHONPATH": str(ROOT / "tests" / "ops"), "PATH": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "6 of 6 cases right on cpu", done.stderr


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
