"""Tests of the attention kernels alone. All cases also run in `test_schedules.py`."""

from __future__ import annotations

import pytest
import torch

from .build import Emulator
from .features_attention_cases import Case, run_case


@pytest.mark.parametrize("multiprocessors", [1, 7, 132])
@pytest.mark.parametrize(
    "case",
    [
        Case(n=1, channels=300, height=1, width=1),
        Case(n=2, channels=300),
        Case(n=20, channels=40, teacher_channels=500),
        Case(n=2, channels=40, student_last=True),
        Case(n=33, channels=10, power=0.0),
    ],
    ids=str,
)
def test_any_size_of_device(emulator: Emulator, case: Case, multiprocessors: int) -> None:
    emulator.set_multiprocessors(multiprocessors)
    run_case(case)


@pytest.mark.parametrize(("power", "forward"), [(2.0, 2), (3.0, 2), (0.0, 1)])
def test_launches(emulator: Emulator, power: float, forward: int) -> None:
    run_case(Case(power=power, channels=700))
    assert emulator.launches() == forward + 1


@pytest.mark.parametrize("case", [Case(n=9, channels=700), Case(n=9, student_last=True), Case(n=9, power=0.0)], ids=str)
def test_same_bits_whatever_the_schedule(emulator: Emulator, case: Case) -> None:
    ops = torch.ops.sftn_fast_emulated
    student, teacher = case.maps()
    results = []
    for seed in range(4):
        emulator.set_seed(seed)
        forward = ops.features_attention_forward(student, teacher, case.power, case.absolute)
        loss, maps, stats = forward
        options = (case.power, case.absolute, True, True)
        results.append([*forward, *ops.features_attention_backward(loss, student, teacher, maps, stats, *options)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
