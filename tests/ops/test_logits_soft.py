"""Targets of probabilities, as those of mixed images, for the losses on logits. The table has values for all dtypes."""

from __future__ import annotations

import logits_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from families import DTYPES
from logits_table import LOSSES, assert_close, differentiate, make
from pairing import paired

from sftn_fast import ops


def of(name, backend, dtype=torch.float32, n=5, c=40):
    """Return (teacher, students, probabilities) whose rows do not sum to 1."""
    teacher, students, _ = make(LOSSES[name], n, c, dtype=dtype, device=backend.device)
    y = torch.rand(n, c, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return teacher, students, (y * (y > 0.6)).to(torch.float32).to(backend.device)


@paired(backend=BACKENDS, classes=[7, 1100], smoothing=[0.0, 0.2, 1.0])
def test_it_is_pytorchs_cross_entropy(backend, classes, smoothing):
    teacher, (student,), y = of("kd_ce", backend, torch.float64, c=classes)
    y = y.double()
    leaf, same = student.clone().requires_grad_(), student.clone().requires_grad_()
    terms = ops.kd_ce_loss(leaf, teacher, y, kd_weight=0.0, ce_weight=1.0, label_smoothing=smoothing)
    true = F.cross_entropy(same, y, label_smoothing=smoothing)
    terms.total.backward()
    true.backward()
    torch.testing.assert_close(terms.ce, true.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(leaf.grad, same.grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["kd_ce", "sftn"])
def test_certain_probabilities_are_classes(backend, name):
    loss = LOSSES[name]
    teacher, students, classes = make(loss, 6, 33, dtype=torch.float64, device=backend.device)
    one_hot = F.one_hot(classes, 33).double()
    as_classes = differentiate(loss, ops, teacher, students, classes)
    as_probabilities = differentiate(loss, ops, teacher, students, one_hot)
    assert_close(as_probabilities, as_classes, torch.float64)


@paired(backend=BACKENDS, name=["kd_ce", "sftn"], dtype=DTYPES)
def test_classes_ruled_out(backend, name, dtype):
    """A class at -inf costs nothing if its probability is 0, also over whole chunks of a row."""
    teacher, students, y = of(name, backend, dtype, n=3, c=2100)
    teacher[:, :1200] = -torch.inf
    for student in students:
        student[:, :1100] = -torch.inf
    y[:, :1200] = 0
    actual = differentiate(LOSSES[name], ops, teacher, students, y)
    true = differentiate(LOSSES[name], oracle, teacher.double(), [s.double() for s in students], y)
    assert torch.isfinite(actual.total)
    assert all(grad.isfinite().all() for grad in actual.grads)
    assert_close(actual, true, dtype)


@paired(backend=BACKENDS, smoothing=[0.0, 0.5, 1.0], certain=[True, False])
def test_a_possible_class_that_the_student_rules_out_costs_infinity(backend, smoothing, certain):
    student = torch.tensor([[0.0, -torch.inf]], device=backend.device)
    y = torch.tensor([1] if certain else [[0.5, 0.5]], device=backend.device)
    assert ops.kd_ce_loss(student, student, y, label_smoothing=smoothing).ce.item() == torch.inf


@pytest.mark.parametrize("where", ["teacher", "student", "target"])
def test_nan_propagates(backend, where):
    teacher, (student,), y = of("kd_ce", backend, c=1030)
    {"teacher": teacher, "student": student, "target": y}[where][1, 5] = torch.nan
    assert differentiate(LOSSES["kd_ce"], ops, teacher, [student], y).total.isnan()


@paired(backend=BACKENDS, dtype=DTYPES, target_dtype=[torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(backend, dtype, target_dtype):
    """The target is read in the dtype of the arithmetic, which it decides only if it is float64."""
    teacher, students, y = of("kd_ce", backend, dtype)
    y = y.to(target_dtype)
    actual = differentiate(LOSSES["kd_ce"], ops, teacher, students, y)
    true = differentiate(LOSSES["kd_ce"], oracle, teacher.double(), [s.double() for s in students], y)
    assert_close(actual, true, dtype)


LAYOUTS = {
    "rows apart": lambda y: torch.cat([y, y], 1)[:, 1 : 1 + y.shape[1]],
    "transposed": lambda y: y.T.contiguous().T,
    "every second column": lambda y: y.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda y: y[:1].expand(y.shape),
    "offset": lambda y: torch.cat([y.new_zeros(1), y.flatten()])[1:].view(y.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_strides(backend, layout):
    teacher, students, y = of("sftn", backend)
    strided = layout(y)
    actual = differentiate(LOSSES["sftn"], ops, teacher, students, strided)
    plain = differentiate(LOSSES["sftn"], ops, teacher, students, strided.clone(memory_format=torch.contiguous_format))
    for a, b in zip([actual.total, *actual.grads], [plain.total, *plain.grads], strict=True):
        torch.testing.assert_close(a, b)


def test_probabilities_need_no_gradient_where_none_is_recorded(backend):
    teacher, (student,), y = of("kd_ce", backend)
    y.requires_grad_()
    with torch.no_grad():
        assert ops.kd_ce_loss(student, teacher, y).total.isfinite()


@pytest.mark.parametrize("name", ["kd_ce", "sftn"])
def test_empty_batch(backend, name):
    """0, where PyTorch's cross-entropy gives NaN."""
    teacher, students, y = of(name, backend)
    result = LOSSES[name].run(ops, teacher[:0].requires_grad_(), [s[:0] for s in students], y[:0])
    assert [term.item() for term in result] == [0.0] * len(result)


def test_without_the_teachers_weight(backend):
    """Its cross-entropy is for the log alone."""
    teacher, students, y = of("sftn", backend)
    terms = ops.sftn_loss(teacher, students, y, teacher_weight=0.0)
    assert terms.teacher_ce.item() == pytest.approx(oracle.cross_entropy(teacher, y).item(), rel=1e-5)
