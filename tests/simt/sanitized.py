"""A program that runs every family's cases on the emulated kernels under AddressSanitizer and UBSan.

Run ``python -m tests.simt.sanitized`` with the sanitizers' runtime preloaded. At its end a forked process passes the
kernels a tensor that claims to be longer than its memory, which the sanitizers must find.
"""

from __future__ import annotations

import ctypes
import os

import torch

from .build import load
from .cases import STEMS, cases_of, run_shuffled
from .logits_cases import Case, run_raw


def run_cases(stem: str) -> int:
    """Run every case of a family under a shuffled schedule and return the number of calls.

    The schedule decides which block comes last, not which addresses a kernel touches, so one schedule suffices.
    """
    emulator = load("asan")
    for case in cases_of(stem):
        run_shuffled(emulator, stem, case, seed=1)
    return len(cases_of(stem))


def run_planted(case: Case) -> None:
    """Run a case with the student's last logit just past its allocation."""
    load("asan")
    teacher, (student,), target = case.inputs()
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    address = libc.malloc(ctypes.c_size_t(student.numel() * 4 - 4))
    ctypes.memset(address, 0, student.numel() * 4 - 4)
    buffer = (ctypes.c_float * student.numel()).from_address(address)
    run_raw(case, teacher, [torch.frombuffer(buffer, dtype=torch.float32).view_as(student)], target)


def main() -> None:
    for stem in STEMS:
        print(f"{stem}: {run_cases(stem)} calls", flush=True)
    if (child := os.fork()) == 0:
        run_planted(Case(rows=3, classes=37))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(f"planted: exit code {os.waitstatus_to_exitcode(status)}", flush=True)


if __name__ == "__main__":
    main()
