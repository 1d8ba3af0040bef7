"""A program: runs every family's cases on the emulated kernels under AddressSanitizer and UBSan.

``python -m tests.simt.sanitized [STEM ...]`` with the sanitizers' runtime preloaded; without a stem it runs all.
``--planted`` hands the kernels a tensor that says to be longer than its memory is, which must not go unnoticed.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from .build import load
from .cases import STEMS, cases_of, run_shuffled
from .logits_cases import Case, run_raw


def run_cases(stem: str) -> int:
    """Every case of a family in order, and shuffled. Returns how many calls that were."""
    emulator = load("asan")
    schedules = [(seed, case) for seed in (0, 1) for case in cases_of(stem)]
    for seed, case in schedules:
        run_shuffled(emulator, stem, case, seed=seed)
    return len(schedules)


def run_planted(case: Case) -> None:
    """The student's last logit lies just behind its allocation."""
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
