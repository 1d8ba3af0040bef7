"""The counters of sums over a grid: for any stream or capture, after a launch that failed, without zeroing."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from .build import Emulator

SLOTS = 4096  # of arrivals.cuh


def kd_ce(emulated_ops: Any, target: Tensor) -> float:
    """Compute KD + CE by the raw op, which finds a wrong class on the device."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(len(target), 5, generator=generator) for _ in range(2))
    scales = 0.0, 0.1, 0.9, 1.0, 16 / len(target)
    total, _, _ = emulated_ops.logits_forward(teacher, [student], target, 4.0, *scales, False, False, -100, 0.0)
    return total.item()


def test_right_on_streams_and_in_captures_after_failed_launches(emulator: Emulator, emulated_ops: Any) -> None:
    target = torch.arange(200) % 5
    wrong = target.clone()
    wrong[150] = 7  # is found when some blocks have arrived
    right = kd_ce(emulated_ops, target)
    for stream, capture in [(1, 0), (2, 0), (1, 11), (1, 12), (1, 0)]:
        emulator.set_stream(stream, capture)
        assert kd_ce(emulated_ops, target) == right
        with pytest.raises(RuntimeError, match="assertion failed"):
            kd_ce(emulated_ops, wrong)
        assert kd_ce(emulated_ops, target) == right
    assert emulator.memsets() == 0


def test_right_without_a_counter_left(emulator: Emulator, emulated_ops: Any) -> None:
    """Counters are never returned, so a process of its own takes them all."""
    target = torch.arange(3)
    right = kd_ce(emulated_ops, target)
    child = os.fork()
    if child == 0:
        grams = torch.zeros(3, 3), torch.ones(3, 3)
        for capture in range(100, 100 + SLOTS):
            emulator.set_stream(1, capture)
            emulated_ops.sp_forward(*grams, False, False)
        memsets = emulator.memsets()
        os._exit(0 if memsets > 0 and kd_ce(emulated_ops, target) == right and emulator.memsets() == memsets + 1 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
