"""A temperature that is a tensor, for the losses on logits: the exact derivative, and everything a number can do."""

from __future__ import annotations

import math

import logits_oracle as oracle
import pytest
import torch
from backends import BACKENDS
from families import DTYPES, accumulator, ids, refusals, wave
from logits_table import LOSSES, TOLERANCE, make, mixed
from pairing import paired

from sftn_fast import ops
from sftn_fast.ops.reference import logits as reference

X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)

LOSSES_AT = {
    "kd": lambda m, s, t, y, at: m.kd_loss(s, t, at),
    "kd-none": lambda m, s, t, y, at: m.kd_loss(s, t, at, reduction="none"),
    "kd_ce": lambda m, s, t, y, at: m.kd_ce_loss(s, t, y, at)[0],
    "kd_ce-soft": lambda m, s, t, y, at: m.kd_ce_loss(s, t, mixed(y, s), at, label_smoothing=0.1)[0],
}
each = pytest.mark.parametrize("loss", LOSSES_AT.values(), ids=LOSSES_AT.keys())


def inputs(backend, dtype=torch.float64, n=4, c=9):
    teacher, (student,), y = make(LOSSES["kd"], n, c, dtype=dtype, device=backend.device)
    return student, teacher, y


def differentiate(loss, module, student, teacher, y, temperature):
    """Return the loss and the gradients of student, teacher and temperature."""
    leaves = [x.detach().clone().requires_grad_() for x in (student, teacher, temperature)]
    total = loss(module, *leaves[:2], y, leaves[2])
    weight = torch.linspace(0.5, 2, total.numel(), dtype=total.dtype, device=total.device).reshape(total.shape)
    return total.detach(), torch.autograd.grad(total, leaves, weight)


@paired(backend=BACKENDS, loss=LOSSES_AT, dtype=DTYPES, value=[0.5, 4.0, 30.0])
def test_values_and_gradients(backend, loss, dtype, value):
    student, teacher, y = inputs(backend, dtype)
    temperature = torch.tensor(value, dtype=torch.float64, device=backend.device)
    total, grads = differentiate(loss, ops, student, teacher, y, temperature)
    true, true_grads = differentiate(loss, oracle, student.double(), teacher.double(), y, temperature)
    off = TOLERANCE[accumulator(dtype)] * max(1, 1 / value)
    assert total.dtype == accumulator(dtype)
    torch.testing.assert_close(total.double(), true, rtol=off, atol=off)
    assert [grad.dtype for grad in grads] == [dtype, dtype, torch.float64]
    sizes = [right.abs().max().item() for right in true_grads[:2]] + [true.abs().sum().item() / value]
    for grad, right, size in zip(grads, true_grads, sizes, strict=True):  # T's: a difference of terms of that size
        torch.testing.assert_close(grad.double(), right.double(), rtol=0, atol=(TOLERANCE[dtype] + off) * size + 6e-8)


def test_gradcheck(backend):
    student, teacher, y = inputs(backend, n=3, c=4)
    for loss in LOSSES_AT.values():
        leaves = [student, teacher, torch.tensor(1.7, dtype=torch.float64, device=backend.device)]
        leaves = [x.clone().requires_grad_() for x in leaves]
        assert torch.autograd.gradcheck(lambda s, t, at, loss=loss: loss(ops, s, t, y, at), leaves, fast_mode=True)


def test_ctkds_own_values(backend):
    """What CTKD's code gives in float64 for its divergence at the start: T = 1 + 20 sigmoid(theta), theta = 1."""
    student, teacher = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)
    theta = torch.tensor(1.0, dtype=torch.float64, device=backend.device, requires_grad=True)
    loss = ops.kd_loss(student.to(backend.device), teacher.to(backend.device), 1 + 20 * theta.sigmoid())
    loss.backward()
    assert loss.item() == pytest.approx(3.349997914118647, rel=1e-13)
    assert theta.grad.item() == pytest.approx(0.04019542001156981, rel=1e-12)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_standardised_logits(backend, reduction):
    student, teacher, _ = inputs(backend)
    temperature = torch.tensor(2.0, dtype=torch.float64, device=backend.device)
    results = []
    for standardize in (lambda x: x, reference.standardized):  # by the loss, and before it
        leaves = [x.clone().requires_grad_() for x in (student, temperature)]
        own = {} if standardize is reference.standardized else {"standardize": True}
        rows = ops.kd_loss(standardize(leaves[0]), standardize(teacher), leaves[1], reduction=reduction, **own)
        results.append((rows.detach(), *torch.autograd.grad(rows.sum(), leaves)))
    torch.testing.assert_close(*results, rtol=1e-8, atol=1e-12)
    number = ops.kd_loss(student, teacher, 2.0, reduction=reduction, standardize=True)
    torch.testing.assert_close(results[0][0], number, rtol=1e-10, atol=0)


def test_the_temperature_alone_learns(backend):
    student, teacher, _ = inputs(backend, torch.float32)
    temperature = torch.nn.Parameter(torch.tensor(2.0, device=backend.device))
    ops.kd_loss(student, teacher, temperature).backward()
    number = ops.kd_loss(student, teacher, 2.0)
    around = [oracle.kd_loss(student.double(), teacher.double(), 2.0 + step).item() for step in (1e-5, -1e-5)]
    assert temperature.grad.item() == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-4)
    plain = ops.kd_loss(student, teacher, temperature.detach())
    assert not plain.requires_grad
    torch.testing.assert_close(plain, number)


def test_classes_ruled_out(backend):
    """-inf in the teacher and in both gives a finite derivative with respect to the temperature."""
    student, teacher, _ = inputs(backend)
    teacher[:, :3] = student[:, :2] = -torch.inf
    temperature = torch.tensor(3.0, dtype=torch.float64, device=backend.device)
    leaves = [x.requires_grad_() for x in (student, teacher, temperature)]
    grads = torch.autograd.grad(ops.kd_loss(*leaves), leaves)
    around = [oracle.kd_loss(student, teacher, 3.0 + step).item() for step in (1e-5, -1e-5)]
    assert all(grad.isfinite().all() for grad in grads)
    assert grads[2].item() == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-7)


def test_logits_far_from_zero_lose_no_digits(backend):
    student, teacher, _ = inputs(backend, torch.float32)
    temperature = torch.tensor(3.0, device=backend.device)
    _, near = differentiate(LOSSES_AT["kd"], ops, student, teacher, None, temperature)
    shift = 2.0**13  # exact, as the logits are multiples of 2^-10
    student, teacher = ((x * 1024).round() / 1024 for x in (student, teacher))
    _, near = differentiate(LOSSES_AT["kd"], ops, student, teacher, None, temperature)
    _, far = differentiate(LOSSES_AT["kd"], ops, student + shift, teacher + shift, None, temperature)
    for a, b in zip(near, far, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_its_dtype_decides_none(backend, dtype):
    """Squares are computed in the dtype of the arithmetic: float16 holds none above 255."""
    student, teacher, y = inputs(backend, torch.float32)
    temperature = torch.tensor(300.0, dtype=dtype, device=backend.device, requires_grad=True)
    terms = ops.kd_ce_loss(student, teacher, y, temperature)
    terms.total.backward()
    assert temperature.grad.dtype == dtype
    assert {term.dtype for term in terms} == {torch.float32}
    at_number = ops.kd_ce_loss(student, teacher, y, temperature.item())
    torch.testing.assert_close(tuple(x.detach() for x in terms), tuple(at_number))
    assert [term.requires_grad for term in terms] == [True, False, False]


def test_an_empty_batch(backend):
    temperature = torch.tensor(4.0, device=backend.device, requires_grad=True)
    total = ops.kd_loss(X[:0].to(backend.device), X[:0].to(backend.device), temperature)
    total.backward()
    assert total.item() == temperature.grad.item() == 0


def test_one_of_inference_mode(backend):
    student, teacher, _ = inputs(backend, torch.float32)
    with torch.inference_mode():
        temperature = torch.tensor(4.0, device=backend.device)
    student.requires_grad_()
    ops.kd_loss(student, teacher, temperature).backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", ["fused", "reference"])
def test_traced_whole(name):
    """There is no graph break, and no look at the value."""
    torch._dynamo.reset()
    student, teacher, y = torch.randn(4, 6), torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    loss = LOSSES_AT["kd_ce"]
    if name == "fused" and not ops._library.CPU.loaded:
        pytest.skip("no CPU kernels")
    with ops.backend(name):
        compiled = torch.compile(lambda s, t, y, at: loss(ops, s, t, y, at), fullgraph=True, backend="aot_eager")
        results = []
        for call in (compiled, lambda s, t, y, at: loss(ops, s, t, y, at)):
            temperature = torch.tensor(3.0, requires_grad=True)
            total = call(student, teacher, y, temperature)
            total.backward()
            results.append((total.detach(), temperature.grad))
    torch.testing.assert_close(*results)


test_type_errors = refusals(
    TypeError,
    {
        "integers": (
            lambda: ops.kd_loss(X, X, torch.tensor(4)),
            "temperature must be a number or a floating-point tensor, got a tensor of torch.int64",
        ),
        "sparse": (lambda: ops.kd_loss(X, X, torch.ones(2).to_sparse()), "temperature must be a dense tensor"),
        "branches": (lambda: ops.sftn_loss(X, [X], Y, torch.tensor(4.0)), "temperature must be a number, got Tensor"),
        "branches, learned": (
            lambda: ops.sftn_loss(X, [X], Y, torch.tensor(4.0, requires_grad=True)),
            "temperature must be a number: the loss has no gradient with respect to it",
        ),
    },
)
test_value_errors = refusals(
    ValueError,
    {
        "one element": (
            lambda: ops.kd_ce_loss(X, X, Y, torch.ones(1)),
            r"temperature must be a number or a 0-dim tensor, got a tensor of shape \[1\]",
        ),
        "elsewhere": (
            lambda: ops.kd_loss(X, X, torch.tensor(4.0, device="meta")),
            "temperature must be on the device of the logits, cpu, got meta",
        ),
        "zero": (lambda: ops.kd_loss(X, X, torch.tensor(0.0)), "temperature must be a finite number above 0, got 0.0"),
        "nan": (
            lambda: ops.kd_loss(X, X, torch.nn.Parameter(torch.tensor(math.nan))),
            "temperature must be a finite number above 0, got nan",
        ),
    },
)
