"""The emulator itself: its results, and the faults planted in native/cases.cu, which it must find."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .build import CMAKE_DIR, build_target

NATIVE = Path(__file__).parent / "native"
pytestmark = pytest.mark.compiles("simt_cases_plain", "simt_cases_asan")


def read_cases() -> list[tuple[str, str, str]]:
    """Return (variant, case, expected message) of each line of cases.txt and each of its variants."""
    lines = [line for line in (NATIVE / "cases.txt").read_text().splitlines() if not line.startswith("#")]
    fields = [[field.strip() for field in line.split("|")] for line in lines]
    return [(variant, case, message) for case, variants, message in fields for variant in variants.split()]


def run_case(variant: str, case: str) -> subprocess.CompletedProcess[str]:
    build_target(f"simt_cases_{variant}")
    program = CMAKE_DIR / "tests" / "simt" / "native" / f"simt_cases_{variant}"
    return subprocess.run([program, case], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("variant", "case", "message"), read_cases(), ids=lambda value: value.replace(" ", "-"))
def test_case(variant: str, case: str, message: str) -> None:
    done = run_case(variant, case)
    said = done.stdout + done.stderr
    assert message in said
    assert (done.returncode == 0) == (message == ""), said
    if "Sanitizer" in said or "runtime error" in said:
        assert "cases.cu:" in said  # the line of the kernel is named


def test_every_case_is_listed() -> None:
    listed = {case for _, case, _ in read_cases()}
    assert set(run_case("plain", "").stdout.split()) == listed
