"""A program: runs the logits cases on the emulated kernels under AddressSanitizer and UBSan.

``python -m tests.simt.sanitized [planted]``, with the sanitizers' runtime preloaded. "planted" hands the kernels a
tensor that says to be longer than its memory is, which must not go unnoticed.
"""

from __future__ import annotations

import ctypes
import sys

import torch

from .build import load
from .logits_cases import CASES, Case, check, oracle, run_raw


def run_cases() -> int:
    """Every case in order, and shuffled. Returns how many calls that were."""
    emulator = load("asan")
    calls = 0
    for seed in (0, 1):
        for case in CASES:
            emulator.set_seed(seed)
            inputs = case.inputs()
            check(case, run_raw(case, *inputs), oracle(case, *inputs))
            calls += 1
    return calls


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
    if sys.argv[1:] == ["planted"]:
        run_planted(Case(rows=3, classes=37))
    else:
        print(f"{run_cases()} calls")
