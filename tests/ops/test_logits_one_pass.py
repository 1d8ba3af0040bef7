"""The CPU's one pass over the logits, which leaves the gradients, beside the two that others take."""

from __future__ import annotations

import pytest
import torch
from families import DTYPES, ids, needs_kernels
from logits_table import LOSSES, assert_close, differentiate, make

from sftn_fast import ops
from sftn_fast.ops import _logits

pytestmark = needs_kernels
SCALAR = {name: loss for name, loss in LOSSES.items() if name != "kd-none"}


@pytest.fixture
def in_two_passes(monkeypatch):
    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr(_logits, "MOST_KEPT", 0)
            return call()

    return run


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of the raw ops that are called."""
    names = []
    real = _logits._call
    monkeypatch.setattr(_logits, "_call", lambda op, *rest: names.append(op.__name__) or real(op, *rest))
    return names


@pytest.mark.parametrize("loss", SCALAR.values(), ids=SCALAR.keys())
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_it_agrees_with_two_passes(in_two_passes, loss, dtype):
    for n, c in ((1, 1), (5, 100), (3, 1040), (40, 33)):
        inputs = make(loss, n, c, dtype=dtype, device="cpu")
        one = differentiate(loss, ops, *inputs)
        two = in_two_passes(lambda inputs=inputs: differentiate(loss, ops, *inputs))
        two.total, two.teacher_grad = two.total.double(), two.teacher_grad.double()
        two.student_grads = [grad.double() for grad in two.student_grads]
        assert_close(one, two, dtype)


@pytest.mark.parametrize("temperature", [1, 2, 3, 5, 7, 8, 15, 16, 17, 0.5, 2.5, 30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_any_temperature(temperature, dtype):
    """A whole one makes powers of exponentials: as exact as exponentials of their own, and -inf stays impossible."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (9 * torch.randn(6, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    student[:, 7], teacher[:, 7] = -torch.inf, -torch.inf
    target = torch.arange(6)
    results = []
    for module, kind in ((ops, dtype), (ops.reference, torch.float64)):
        leaf = student.to(dtype).to(kind).requires_grad_()
        total = module.kd_ce_loss(leaf, teacher.to(dtype).to(kind), target, temperature, kd_weight=0.3).total
        total.backward()
        results.append((total.detach().double(), leaf.grad.double()))
    (total, grad), (true_total, true_grad) = results
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(total, true_total, rtol=tolerance, atol=0)
    torch.testing.assert_close(grad, true_grad, rtol=0, atol=tolerance * true_grad.abs().max().item())


def test_who_takes_one_pass(calls):
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    ops.kd_loss(student, teacher)
    ops.kd_loss(student, teacher, reduction="none")  # a number for each row
    ops.kd_loss(student.detach(), teacher)  # no gradient
    wide = torch.randn(1, _logits.MOST_KEPT // 2 + 1, requires_grad=True)
    ops.kd_loss(wide, wide.detach())  # would leave the cache
    assert calls == ["logits_both", "logits_forward", "logits_forward", "logits_forward"]


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_a_graph_may_be_differentiated_again(dtype):
    """The gradients that are kept stay what they were, whatever is done with those that were returned."""
    student, teacher = torch.randn(4, 9, dtype=dtype).requires_grad_(), torch.randn(4, 9, dtype=dtype)
    total = ops.kd_loss(student, teacher)
    (first,) = torch.autograd.grad(total, student, retain_graph=True)
    expected = first.clone()
    torch.autograd.grad(total, student, retain_graph=True)[0].mul_(5)
    total.backward(retain_graph=True)
    student.grad.mul_(5)
    total.backward(torch.full_like(total, 2.0))
    torch.testing.assert_close(student.grad, 7 * expected)
    torch.testing.assert_close(first, expected, rtol=0, atol=0)


def test_a_small_gradient_of_half_precision_is_not_lost():
    """Gradients wait in float32: scaled as by a GradScaler, they come out where float16 can hold them."""
    student = torch.zeros(2, 3, dtype=torch.float16, requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float16)
    total = ops.kd_loss(student, teacher, 1.0) * 1e-9
    (total * 2.0**26).backward()
    leaf = student.detach().float().requires_grad_()
    (ops.reference.kd_loss(leaf, teacher.float(), 1.0) * (1e-9 * 2.0**26)).backward()
    torch.testing.assert_close(student.grad.float(), leaf.grad, rtol=1e-3, atol=0)


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("target", [None, torch.tensor([2, 0, 1])], ids=["divergence", "with a target"])
def test_opcheck(wanted, target):
    options = _logits.Options(4.0, teacher_weight=0.5, ce_weight=1.0)
    teacher, students = torch.randn(3, 7), [torch.randn(3, 7) for _ in range(2)]
    torch.library.opcheck(torch.ops.sftn_fast.logits_both.default, (teacher, students, target, *options, *wanted))


def test_rows_are_refused_by_the_raw_op():
    options = _logits.Options(4.0, rows=True)
    with pytest.raises(RuntimeError, match="a loss for each row"):
        torch.ops.sftn_fast.logits_both(torch.randn(3, 7), [torch.randn(3, 7)], None, *options, True, True)
