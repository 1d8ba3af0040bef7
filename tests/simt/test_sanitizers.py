"""The kernels under AddressSanitizer and UBSan, in a separate process with the runtimes preloaded."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .build import LIBRARIES, ROOT, ensure_built, find_compiler
from .cases import STEMS, cases_of

pytestmark = pytest.mark.compiles(LIBRARIES["asan"][0])


@pytest.fixture(scope="module")
def sanitized() -> subprocess.CompletedProcess[str]:
    """One process for all: torch alone takes five seconds to import under the sanitizers."""
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
    command = [sys.executable, "-m", "tests.simt.sanitized"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("stem", STEMS)
def test_kernels_touch_only_their_own_memory(sanitized: subprocess.CompletedProcess[str], stem: str) -> None:
    """A run ends at its first error, so the families after the faulty one fail too; the report names the kernel."""
    assert f"{stem}: {len(cases_of(stem))} calls" in sanitized.stdout.splitlines(), sanitized.stderr[-6000:]


def test_nothing_is_reported_but_the_planted_overrun(sanitized: subprocess.CompletedProcess[str]) -> None:
    assert sanitized.returncode == 0, sanitized.stderr[-6000:]
    assert len(sanitized.stdout.splitlines()) == len(STEMS) + 1
    assert "planted: exit code 1" in sanitized.stdout.splitlines()
    assert sanitized.stderr.count("ERROR: AddressSanitizer") == 1
    assert "heap-buffer-overflow" in sanitized.stderr
    assert "csrc/cuda/" in sanitized.stderr
