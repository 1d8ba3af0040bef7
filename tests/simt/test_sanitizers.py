"""The kernels under AddressSanitizer and UBSan, in a process of their own that has the runtimes preloaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .build import ROOT, ensure_built, find_compiler
from .cases import STEMS, cases_of


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    ensure_built("asan")
    asked = [find_compiler(), "-print-file-name=libasan.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        # Python and torch leak at exit by design; a fake stack would be torn by the fibers' switches
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.simt.sanitized", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_touch_only_their_own_memory(stem: str) -> None:
    done = run_sanitized(stem)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout == f"{stem}: {2 * len(cases_of(stem))} calls\n"


def test_planted_overrun_is_caught() -> None:
    done = run_sanitized("--planted")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "csrc/cuda/" in done.stderr
