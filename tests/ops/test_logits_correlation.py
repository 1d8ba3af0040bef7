"""DIST: golden values, and what its formula alone has."""

from __future__ import annotations

import pytest
import torch
from families import refusals, wave

from sftn_fast import ops
from sftn_fast.ops import reference

STUDENT, TEACHER = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)


def test_golden_values(backend):
    """What the authors' code gives in float64."""
    student = STUDENT.to(backend.device).clone().requires_grad_()
    terms = ops.dist_loss(student, TEACHER.to(backend.device))
    terms.total.backward()
    assert terms.total.item() == pytest.approx(25.090492183055616, abs=1e-9)
    assert terms.inter.item() == pytest.approx(11.49979272672278, abs=1e-9)
    assert terms.intra.item() == pytest.approx(13.590699456332835, abs=1e-9)
    assert student.grad.square().sum().item() == pytest.approx(12.061720478488182, abs=1e-9)
    at_one = ops.dist_loss(STUDENT.to(backend.device), TEACHER.to(backend.device), 1.0)
    assert at_one.total.item() == pytest.approx(1.628011779433629, abs=1e-9)


def test_weights_apply_to_the_total(backend):
    pair = STUDENT.to(backend.device), TEACHER.to(backend.device)
    plain, weighted = ops.dist_loss(*pair), ops.dist_loss(*pair, inter_weight=0.5, intra_weight=-3)
    assert weighted.inter == plain.inter and weighted.intra == plain.intra
    assert weighted.total.item() == pytest.approx(0.5 * plain.inter.item() - 3 * plain.intra.item(), rel=1e-12)


def draw(n, c, backend, dtype=torch.float32, spread=2.0):
    generator = torch.Generator().manual_seed(n * c)
    pair = spread * torch.randn(2, n, c, generator=generator, dtype=torch.float64)
    return [x.to(dtype).to(backend.device).requires_grad_() for x in pair]


def differentiated(module, student, teacher, *arguments):
    terms = module.dist_loss(student, teacher, *arguments)
    return terms, torch.autograd.grad(terms.total, (student, teacher))


def assert_as_in_float64(student, teacher, *arguments, tolerance=5e-5):
    """Assert that terms and gradients are those of the reference in float64."""
    actual, grads = differentiated(ops, student, teacher, *arguments)
    wide = [x.detach().double().requires_grad_() for x in (student, teacher)]
    expected, right_grads = differentiated(reference, *wide, *arguments)
    for x, right in zip((*actual, *grads), (*expected, *right_grads), strict=True):
        atol = tolerance * right.detach().abs().max().item()
        torch.testing.assert_close(x.detach().double(), right.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("shape", [(3, 100_000), (300, 101), (18, 1500)], ids=str)
def test_long_rows_and_many_rows(backend, shape):
    n, c = shape
    if backend.name == "emulated":
        n, c = min(n, 40), min(c, 5000)
    assert_as_in_float64(*draw(n, c, backend))


@pytest.mark.parametrize("temperature", [0.05, 100.0, 1e6])
def test_temperatures_keep_their_digits(backend, temperature):
    """At a large one all probabilities are near 1 / C."""
    assert_as_in_float64(*draw(9, 37, backend), temperature)


def test_impossible_classes(backend):
    student, teacher = (x.detach() for x in draw(6, 40, backend))
    student[:, ::3] = teacher[:, ::3] = -torch.inf
    student[2, 1] = -torch.inf
    student.requires_grad_(), teacher.requires_grad_()
    assert_as_in_float64(student, teacher)
    _, (grad, _) = differentiated(ops, student, teacher)
    assert grad[:, ::3].count_nonzero() == 0 and grad[2, 1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_constant_rows_and_columns_are_uncorrelated(backend, dtype):
    """Equal logits have no correlation over classes, equal images none over the batch: exactly."""
    student, teacher = draw(7, 33, backend, dtype)
    terms = ops.dist_loss(torch.full_like(student, 3.7), teacher)
    assert terms.inter == terms.intra == 16
    terms = ops.dist_loss(student[:1].expand(student.shape), teacher)
    assert terms.inter != 16 and terms.intra == 16
    assert ops.dist_loss(student[:1], teacher[:1]).intra == 16
    assert ops.dist_loss(student[:, :1], teacher[:, :1]).total == 32


def test_nothing_of_the_size_of_the_logits_is_kept(backend):
    if not backend.fused:
        pytest.skip("plain PyTorch keeps what its operations need")
    student, teacher = draw(64, 96, backend)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        ops.dist_loss(student, teacher)
    assert sorted(x.numel() for x in kept) == [6 * 96, 12 * 64, 64 * 96, 64 * 96]  # the last two are the inputs


test_refuses_types = refusals(
    TypeError,
    {
        "logits": (lambda: ops.dist_loss([1.0], TEACHER), "student_logits must be a tensor, got list"),
        "integers": (lambda: ops.dist_loss(STUDENT, TEACHER.long()), "teacher_logits must be float16"),
        "weight": (lambda: ops.dist_loss(STUDENT, TEACHER, inter_weight="1"), "inter_weight must be a number, got str"),
    },
)

test_refuses_values = refusals(
    ValueError,
    {
        "dimensions": (
            lambda: ops.dist_loss(STUDENT[0], TEACHER),
            r"student_logits must be \[N, C\] with C at least 1",
        ),
        "shape": (
            lambda: ops.dist_loss(STUDENT, TEACHER[:, :9]),
            "teacher_logits must have the shape of student_logits",
        ),
        "temperature": (lambda: ops.dist_loss(STUDENT, TEACHER, 0.0), "temperature must be a finite number above 0"),
        "weight": (lambda: ops.dist_loss(STUDENT, TEACHER, intra_weight=float("nan")), "intra_weight must be a finite"),
    },
)
