"""A program that runs every family's cases on the emulated kernels under AddressSanitizer and UBSan.

Run ``python -m tests.simt.sanitized [STEM ...]`` with the sanitizers' runtime preloaded; the default is all stems.
``--planted`` passes the kernels a tensor that claims to be longer than its memory, which the sanitizers must find.
"""

from __future__ import annotations

import ctypes
import sys

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


if __name__ == "__main__":
    if sys.argv[1:] == ["--planted"]:
        run_planted(Case(rows=3, classes=37))
    else:
        for stem in sys.argv[1:] or STEMS:
            print(f"{stem}: {run_cases(stem)} calls", flush=True)
