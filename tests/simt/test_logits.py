"""The logits kernels on the emulator: values beyond logits_cases.py, launches, errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .build import Emulator
from .logits_cases import IGNORE, Case, check, oracle, run_raw

INF = float("inf")


@pytest.mark.parametrize("classes", [20, 1100])
@pytest.mark.parametrize("students", [1, 3, 16])
def test_one_launch_a_direction(emulator: Emulator, students: int, classes: int) -> None:
    case = Case(students=students, classes=classes)
    run_raw(case, *case.inputs())
    assert emulator.launches() == 2


@pytest.mark.parametrize("case", [Case(rows=4, classes=12), Case(rows=4, classes=1200)], ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_impossible_classes(emulator: Emulator, case: Case, reverse: bool) -> None:
    """Classes at -inf in both networks, also in whole warps of a long row: no contribution, no gradient, no NaN."""
    case = replace(case, student_to_teacher=reverse)
    teacher, students, target = case.inputs()
    dead = torch.arange(case.classes) % 3 == 1
    dead[case.classes // 2 : case.classes - 3] = True
    teacher[:, dead] = -INF
    students[0][:, dead] = -INF
    target = torch.zeros(case.rows, dtype=torch.int64)
    ours, right = run_raw(case, teacher, students, target), oracle(case, teacher, students, target)
    check(case, ours, right)
    assert all((grad[:, dead] == 0).all() for grad in ours.grads)


def test_class_impossible_for_the_teacher_alone(emulator: Emulator) -> None:
    case = Case(target=False)
    teacher, students, _ = case.inputs()
    teacher[:, ::2] = -INF
    check(case, run_raw(case, teacher, students, None), oracle(case, teacher, students, None))


def test_class_impossible_for_the_student_alone(emulator: Emulator) -> None:
    case = Case(target=False)
    teacher, students, _ = case.inputs()
    students[0][1, 3] = -INF
    ours, right = run_raw(case, teacher, students, None), oracle(case, teacher, students, None)
    assert ours.total == right.total == INF
    torch.testing.assert_close(ours.grads[1].double(), right.grads[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [10, 1100])
@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_nan_shows(emulator: Emulator, where: str, classes: int, bad: float) -> None:
    case = Case(classes=classes)
    teacher, students, target = case.inputs()
    (teacher if where == "teacher" else students[0])[2, classes - 2] = bad
    ours = run_raw(case, teacher, students, target)
    assert ours.total.isnan()
    assert ours.grads[1][2].isnan().any()
    assert ours.grads[1][:2].isfinite().all()


def test_all_rows_ignored(emulator: Emulator) -> None:
    case = Case(students=2)
    teacher, students, _ = case.inputs()
    target = torch.full((case.rows,), IGNORE)
    ours, right = run_raw(case, teacher, students, target), oracle(case, teacher, students, target)
    check(case, ours, right)
    assert ours.parts[0] == ours.parts[1] == ours.parts[3] == 0


@pytest.mark.parametrize("bad", [-1, 10, 2**40])
def test_class_out_of_range(emulator: Emulator, bad: int) -> None:
    case = Case()
    teacher, students, target = case.inputs()
    target[2] = bad
    with pytest.raises(RuntimeError, match="target"):
        run_raw(case, teacher, students, target)


def test_many_students(emulator: Emulator) -> None:
    case = Case(students=64, classes=4)
    inputs = case.inputs()
    check(case, run_raw(case, *inputs), oracle(case, *inputs))
    teacher, students, target = inputs
    with pytest.raises(RuntimeError, match="at most 64 students"):
        run_raw(case, teacher, [*students, students[0]], target)


@pytest.mark.parametrize(("teacher_grad", "student_grad"), [(True, False), (False, True)])
def test_gradients_asked_for(emulator: Emulator, teacher_grad: bool, student_grad: bool) -> None:
    case = Case(students=2)
    inputs = case.inputs()
    ops = torch.ops.sftn_fast_emulated
    total, parts, stats = ops.logits_forward(*inputs, *case.options)
    grad = torch.full_like(total, 1.7)
    some = ops.logits_backward(grad, *inputs, parts, stats, *case.options, teacher_grad, student_grad)
    whole = ops.logits_backward(grad, *inputs, parts, stats, *case.options, True, True)
    expected = whole[:1] if teacher_grad else whole[1:]
    assert len(some) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(some, expected, strict=True))


def test_every_row_of_stats_is_written(emulator: Emulator) -> None:
    case = Case(rows=50, classes=11, students=3)
    teacher, students, target = case.inputs()
    _, _, stats = torch.ops.sftn_fast_emulated.logits_forward(teacher, students, target, *case.options)
    for k, logits in enumerate((teacher, *students)):
        x = logits.double()
        top = x.max(1).values
        expected = torch.stack([top, x.logsumexp(1) - top, (x / 4).logsumexp(1) - top / 4], 1)
        begin = 0 if k == 0 else 3 + 5 * (k - 1)
        torch.testing.assert_close(stats[:, begin : begin + 3].double(), expected, rtol=1e-5, atol=1e-6)
