"""The CPU's one pass over the logits, which leaves the gradients, beside the two that others take."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from families import DTYPES, FAKES, ids, needs_kernels
from logits_table import LOSSES, assert_close, differentiate, make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from sftn_fast import ops
from sftn_fast.ops import _logits, _nodes

pytestmark = [needs_kernels, pytest.mark.usefixtures("autograd")]
SCALAR = {name: loss for name, loss in LOSSES.items() if name != "kd-none"}


@pytest.fixture(params=["nodes", "in Python"])
def autograd(request):
    with nullcontext() if request.param == "nodes" else _nodes.in_python():
        yield


@pytest.fixture
def in_two_passes(monkeypatch):
    def run(call):
        with monkeypatch.context() as patch:
            patch.setattr(_logits, "MOST_KEPT", 0)
            return call()

    return run


class Calls(TorchDispatchMode):
    """The names of the raw ops that are called inside ``with``."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == "sftn_fast":
            self.names.append(op._schema.name.removeprefix("sftn_fast::"))
        return op(*args, **(kwargs or {}))


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


def test_who_takes_one_pass():
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    wide = torch.randn(1, _logits.MOST_KEPT // 2 + 1, requires_grad=True)
    with Calls() as calls:
        ops.kd_loss(student, teacher)
        ops.kd_loss(student, teacher, reduction="none")  # a number for each row
        ops.kd_loss(student.detach(), teacher)  # no gradient
        ops.kd_loss(wide, wide.detach())  # would leave the cache
        ops.sftn_loss(teacher, [student, teacher], torch.zeros(4, dtype=torch.int64))
    assert calls.names == ["logits_both", "logits_forward", "logits_forward", "logits_forward", "logits_both"]


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
    arguments = teacher, students, target, _logits.packed(options), options.ignore_index, *wanted
    torch.library.opcheck(torch.ops.sftn_fast.logits_both.default, arguments, test_utils=FAKES)


@pytest.mark.parametrize(
    "scalars", [torch.ones(7, dtype=torch.float64), torch.ones(8), torch.ones(16, dtype=torch.float64)[::2]]
)
def test_other_scalars_are_refused_by_the_raw_op(scalars):
    with pytest.raises(RuntimeError, match="scalars must be 8 numbers of float64"):
        torch.ops.sftn_fast.logits_both(torch.randn(3, 7), [torch.randn(3, 7)], None, scalars, -100, True, True)


def test_scalars_are_checked_by_type_and_value():
    """A valid value is remembered; one that equals it may be of a wrong type."""
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    expected = ops.kd_loss(student, teacher, 1.0)
    torch.testing.assert_close(ops.kd_loss(student, teacher, 1), expected, rtol=0, atol=0)
    for wrong, error, message in (
        (True, TypeError, "temperature must be a number, got bool"),
        ([1.0], TypeError, "temperature must be a number, got list"),
        (float("nan"), ValueError, "temperature must be a finite number above 0"),
    ):
        with pytest.raises(error, match=message):
            ops.kd_loss(student, teacher, wrong)


def test_scalars_are_packed_outside_of_modes():
    """What is remembered serves every later call, so it is no tensor of a mode that was active."""
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    _logits.packed.cache_clear()
    with torch.device("meta"):
        first = ops.kd_loss(student, teacher, 3.25)
    torch.testing.assert_close(ops.kd_loss(student, teacher, 3.25), first, rtol=0, atol=0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ops.kd_loss(student, teacher, 3.5)
    torch.testing.assert_close(ops.kd_loss(student, teacher, 3.5), ops.reference.kd_loss(student, teacher, 3.5))


def test_it_is_refused_as_by_the_long_way():
    """Whatever the op refuses before any check, the checks explain."""
    student, teacher = torch.randn(4, 9, requires_grad=True), torch.randn(4, 9)
    target = torch.zeros(4, dtype=torch.int64)
    for call, error, message in (
        (lambda: ops.kd_loss(student, teacher[:3]), ValueError, "teacher_logits must have the shape"),
        (lambda: ops.kd_loss(student[0], teacher[0]), ValueError, "student_logits must be "),
        (lambda: ops.kd_loss(student, teacher.to_sparse()), TypeError, "teacher_logits must be a dense tensor"),
        (lambda: ops.kd_ce_loss(student, teacher, target + 9), ValueError, "target must hold classes from 0 to 8"),
        (lambda: ops.kd_ce_loss(student, teacher, target[:3]), ValueError, "target must be "),
        (lambda: ops.kd_ce_loss(student, teacher, target.int()), TypeError, "target must be "),
        (lambda: ops.hint_loss(student, teacher[:3]), ValueError, "teacher_features must have the shape"),
    ):
        with pytest.raises(error, match=message):
            call()
