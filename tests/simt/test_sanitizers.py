"""The kernels under AddressSanitizer and UBSan, in a separate process with the runtimes preloaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .build import LIBRARIES, ROOT, ensure_built, find_compiler
from .cases import STEMS, cases_of

pytestmark = pytest.mark.compiles(LIBRARIES["asan"][0])


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    ensure_built("asan")
    asked = [find_compiler(), "-print-file-name=libasan.so"]
    runtime = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        # Python and torch leak at exit by design; the fibers' switches would tear a fake stack
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.simt.sanitized", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def all_stems() -> subprocess.CompletedProcess[str]:
    """One run of all families: torch alone takes five seconds to import under the sanitizers."""
    return run_sanitized(*STEMS)


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_touch_only_their_own_memory(all_stems: subprocess.CompletedProcess[str], stem: str) -> None:
    """A run ends at its first error, so the families after the faulty one fail too; the report names the kernel."""
    assert f"{stem}: {len(cases_of(stem))} calls" in all_stems.stdout.splitlines(), all_stems.stderr[-6000:]


def test_nothing_is_reported(all_stems: subprocess.CompletedProcess[str]) -> None:
    assert all_stems.returncode == 0, all_stems.stderr[-6000:]
    assert len(all_stems.stdout.splitlines()) == len(STEMS)


def test_planted_overrun_is_caught() -> None:
    done = run_sanitized("--planted")
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    assert "csrc/cuda/" in done.stderr
