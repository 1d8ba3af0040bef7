"""RKD over backends, dtypes, shapes and layouts, compared with float64 and with RepDistiller's code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from backends import BACKENDS
from families import DTYPES, FAKES, ids, needs_kernels, on_threads, refusals, shapes_for
from pairing import paired
from precision import rounding
from torch import Tensor

from bench.eager.relational import RKD as Eager
from sftn_fast import ops
from sftn_fast.ops import reference

SHAPES = [(2, 3, 2), (3, 1, 1), (5, 7, 4), (16, 16, 16), (17, 15, 33), (33, 40, 20), (49, 100, 64)]  # B, D, D'
LOSSES = {
    "distance": lambda m, s, t: m.rkd_distance_loss(s, t),
    "angle": lambda m, s, t: m.rkd_angle_loss(s, t),
    "rkd": lambda m, s, t: m.rkd_loss(s, t).total,
    "rkd-weights": lambda m, s, t: m.rkd_loss(s, t, distance_weight=0.5, angle_weight=-2).total,
    "rkd-no-angle": lambda m, s, t: m.rkd_loss(s, t, angle_weight=0).total,
    "rkd-no-distance": lambda m, s, t: m.rkd_loss(s, t, distance_weight=0.0).total,
    "distance-eps": lambda m, s, t: m.rkd_distance_loss(s, t, eps=1.5),
    "angle-eps": lambda m, s, t: m.rkd_angle_loss(s, t, eps=1.5),
}


@dataclass
class Result:
    total: Tensor
    grads: list[Tensor]  # the student's, the teacher's


def differentiate(loss: str, module: Any, student: Tensor, teacher: Tensor, *, given: float = -1.7) -> Result:
    leaves = [x.detach().requires_grad_() for x in (student, teacher)]
    total = LOSSES[loss](module, *leaves)
    total.backward(torch.full_like(total, given))
    return Result(total.detach(), [leaf.grad for leaf in leaves])


def make(b: int, d: int, other: int, *, dtype: torch.dtype, device: str, mean: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    values = [mean + torch.randn(b, width, generator=generator, dtype=torch.float64) for width in (d, other)]
    student, teacher = (x.to(dtype).to(device) for x in values)
    return student, teacher


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def check(loss: str, student: Tensor, teacher: Tensor) -> None:
    actual = differentiate(loss, ops, student, teacher)
    right = differentiate(loss, reference, student.double(), teacher.double())
    double = student.dtype == torch.float64
    assert actual.total.dtype == (torch.float64 if double else torch.float32)
    assert actual.total.shape == ()
    of_value = TOLERANCE[torch.float64 if double else torch.float32]
    torch.testing.assert_close(actual.total.double(), right.total, rtol=of_value, atol=of_value / 10)
    for grad, true, x in zip(actual.grads, right.grads, (student, teacher), strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        # For two rows, or one column, the true gradient is 0, and weights of up to 50 multiply rounding errors.
        bound = TOLERANCE[x.dtype] * true.abs().max().item() + of_value
        torch.testing.assert_close(grad.double(), true, rtol=0, atol=bound)


@paired(backend=BACKENDS, dtype=DTYPES, loss=list(LOSSES))
def test_values_and_gradients(backend, loss, dtype):
    """Every size for the plain losses; weights and eps change no loop, and need no size of several tiles."""
    shapes = SHAPES if loss in ("distance", "angle", "rkd") else SHAPES[:5]
    for shape in shapes_for(backend, shapes):
        check(loss, *make(*shape, dtype=dtype, device=backend.device))


@paired(backend=BACKENDS, dtype=[torch.float32, torch.bfloat16], shape=[(130, 30, 200), (67, 2049, 3)])
def test_large(backend, dtype, shape):
    if backend.name == "emulated":
        shape = (min(shape[0], 40), min(shape[1], 600), shape[2])
    check("rkd", *make(*shape, dtype=dtype, device=backend.device))


def test_repdistillers_own_values(backend):
    """The values are those of RepDistiller's RKDLoss in float64."""

    def steps(n: int) -> Tensor:
        return torch.arange(n, dtype=torch.float64, device=backend.device)

    student = torch.sin(0.9 * steps(24) + 0.3).reshape(4, 6)
    teacher = torch.cos(0.5 * steps(32) + 0.1).reshape(4, 8)
    golden = (11.753469646055127, 0.14759243656666204, 0.1612731746377715)
    for actual, value in zip(ops.rkd_loss(student, teacher), golden, strict=True):
        assert actual.item() == pytest.approx(value, rel=1e-13)
    assert ops.rkd_distance_loss(student, teacher).item() == pytest.approx(golden[1], rel=1e-13)
    assert ops.rkd_angle_loss(student, teacher).item() == pytest.approx(golden[2], rel=1e-13)
    for actual, value in zip(ops.rkd_loss(student.float(), teacher.float()), golden, strict=True):
        assert actual.item() == pytest.approx(value, rel=1e-6)


def test_is_the_authors_loss(backend):
    student, teacher = make(20, 12, 9, dtype=torch.float64, device=backend.device)
    student.requires_grad_()
    ours, theirs = ops.rkd_loss(student, teacher).total, Eager()(student, teacher)
    torch.testing.assert_close(ours, theirs)
    for ours_grad, theirs_grad in zip(*(torch.autograd.grad(total, student) for total in (ours, theirs)), strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad)


# ---- layouts ----

LAYOUTS = {
    "row slice": lambda x: x.repeat_interleave(2, 0)[::2],
    "column slice": lambda x: torch.cat([x[:, :0].new_full((len(x), 3), 7), x, x], 1)[:, 3 : 3 + x.shape[1]],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
    "column step": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}


@paired(backend=BACKENDS, dtype=[torch.float32, torch.bfloat16], layout=LAYOUTS)
def test_layouts(backend, dtype, layout):
    student, teacher = make(18, 37, 20, dtype=dtype, device=backend.device)
    check("rkd", layout(student), layout(teacher))


@paired(backend=BACKENDS, teacher_dtype=DTYPES, student_dtype=DTYPES)
def test_mixed_dtypes(backend, student_dtype, teacher_dtype):
    student, teacher = make(6, 5, 4, dtype=torch.bfloat16, device=backend.device)
    student, teacher = student.to(student_dtype).requires_grad_(), teacher.to(teacher_dtype).requires_grad_()
    terms = ops.rkd_loss(student, teacher)
    terms.total.backward()
    double = torch.float64 in (student_dtype, teacher_dtype)
    for actual, true in zip(terms, reference.rkd_loss(student.double(), teacher.double()), strict=True):
        assert actual.dtype == (torch.float64 if double else torch.float32)
        assert actual.item() == pytest.approx(true.item(), rel=1e-5)
    assert student.grad.dtype == student_dtype
    assert teacher.grad.dtype == teacher_dtype


# ---- terms and gradients ----


def test_terms_add_up_and_only_total_has_a_gradient(backend):
    student, teacher = make(9, 6, 7, dtype=torch.float32, device=backend.device)
    student.requires_grad_()
    right = [LOSSES[name](reference, student.double(), teacher.double()).item() for name in ("distance", "angle")]
    for weights in ((25.0, 50.0), (1, 2), (0, 1.5), (0.5, 0.0), (0, 0)):
        terms = ops.rkd_loss(student, teacher, distance_weight=weights[0], angle_weight=weights[1])
        assert [term.requires_grad for term in terms] == [True, False, False]
        assert all(term.dim() == 0 and term.dtype == torch.float32 for term in terms)
        assert [terms.distance.item(), terms.angle.item()] == pytest.approx(right, rel=1e-5)
        total = weights[0] * right[0] + weights[1] * right[1]
        assert terms.total.item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("loss", ["distance", "angle", "rkd"])
def test_gradients_only_where_asked(backend, loss):
    student, teacher = make(7, 4, 5, dtype=torch.float64, device=backend.device)
    full = differentiate(loss, reference, student, teacher)
    for flags in ((True, False), (False, True)):
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip((student, teacher), flags, strict=True)]
        total = LOSSES[loss](ops, *leaves)
        total.backward(torch.full_like(total, -1.7))
        for leaf, flag, grad in zip(leaves, flags, full.grads, strict=True):
            assert (leaf.grad is not None) == flag
            if flag:
                torch.testing.assert_close(leaf.grad, grad)


def test_without_gradients(backend):
    student, teacher = make(20, 7, 7, dtype=torch.float32, device=backend.device)
    total = ops.rkd_loss(student.requires_grad_(), teacher).total.item()
    with torch.no_grad():
        quiet = ops.rkd_loss(student, teacher)
    assert not quiet.total.requires_grad
    assert quiet.total.item() == pytest.approx(total, rel=1e-6)
    with torch.inference_mode():
        assert ops.rkd_loss(student, teacher).total.item() == quiet.total.item()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(backend, loss):
    student, teacher = make(5, 3, 4, dtype=torch.float64, device=backend.device)
    leaves = [student.requires_grad_(), teacher.requires_grad_()]
    assert torch.autograd.gradcheck(lambda s, t: LOSSES[loss](ops, s, t), leaves, eps=1e-6, atol=1e-7, fast_mode=True)


# ---- accuracy ----


def far_from_the_origin(generator: torch.Generator) -> Tensor:
    return 100 + torch.randn(48, 64, generator=generator)


def near_duplicates(generator: torch.Generator, distance: float = 1e-3) -> Tensor:
    rows = torch.randn(48, 64, generator=generator)
    rows[24:] = rows[:24] + distance * torch.randn(24, 64, generator=generator)
    return rows


def nearer_duplicates(generator: torch.Generator) -> Tensor:
    return near_duplicates(generator, 1e-5)


def clusters(generator: torch.Generator) -> Tensor:
    """Return a few tight clusters, like well-trained features."""
    return torch.randn(4, 64, generator=generator).repeat(12, 1) + 0.1 * torch.randn(48, 64, generator=generator)


def loose_clusters(generator: torch.Generator) -> Tensor:
    """Return rows whose squared distances have a ratio of about 40: the CPU kernel takes up to 64 as integers."""
    return torch.randn(4, 64, generator=generator).repeat(12, 1) + 0.24 * torch.randn(48, 64, generator=generator)


@paired(
    backend=BACKENDS,
    loss=["distance", "angle", "rkd"],
    make_student=[far_from_the_origin, near_duplicates, nearer_duplicates, clusters, loose_clusters],
)
def test_accurate_whatever_the_distances(backend, loss, make_student):
    """Any distances give the accuracy of equal distances, to a few roundings of the largest gradient.

    A difference of two rows is rounded once, however close they are, and a relation of float32 differences is as
    accurate as its sums over features and rows.
    """
    generator = torch.Generator().manual_seed(1)
    student, teacher = make_student(generator), torch.randn(48, 32, generator=generator)
    actual = differentiate(loss, ops, student.to(backend.device), teacher.to(backend.device))
    right = differentiate(loss, reference, student.double(), teacher.double())
    assert actual.total.item() == pytest.approx(right.total.item(), rel=1e-6)
    for grad, true in zip(actual.grads, right.grads, strict=True):
        assert (grad.double().cpu() - true).abs().max() < 3 * rounding(64, 48) * true.abs().max()


@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1e8])
def test_angles_have_no_unit(backend, scale):
    """Angles of float32 rows of any scale are those of the rows in float64, as are their gradients."""
    student, teacher = (scale * x for x in make(40, 20, 9, dtype=torch.float32, device=backend.device))
    actual = differentiate("angle", ops, student, teacher)
    right = differentiate("angle", reference, student.double(), teacher.double())
    assert actual.total.item() == pytest.approx(right.total.item(), rel=1e-6)
    for grad, true in zip(actual.grads, right.grads, strict=True):
        assert (grad.double() - true).abs().max() < 3 * rounding(20, 40) * true.abs().max()


# ---- extremes ----


@paired(backend=BACKENDS, b=[0, 1], dtype=DTYPES, loss=list(LOSSES))
def test_batch_without_pairs(backend, loss, dtype, b):
    result = differentiate(loss, ops, *make(b, 5, 4, dtype=dtype, device=backend.device))
    assert result.total.item() == 0
    for grad, width in zip(result.grads, (5, 4), strict=True):
        assert grad.shape == (b, width)
        assert grad.dtype == dtype
        assert grad.count_nonzero() == 0


@paired(backend=BACKENDS, dtype=DTYPES, loss=list(LOSSES))
def test_equal_rows(backend, loss, dtype):
    """Equal rows in the student, in the teacher and in both give the finite results of float64."""
    student, teacher = make(20, 6, 5, dtype=dtype, device=backend.device)
    student[3] = student[7] = student[0]
    teacher[7] = teacher[3] = teacher[15] = teacher[2]
    result = differentiate(loss, ops, student, teacher)
    assert all(grad.isfinite().all() for grad in result.grads)
    check(loss, student, teacher)


@pytest.mark.parametrize("seed", range(8))
def test_equal_rows_at_the_greatest_distance(backend, seed):
    """The two longest sides of a triangle whose third is 0 are the largest numbers of all: none may overflow."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(5, 8, generator=generator).to(backend.device) for _ in range(2))
    student[1] = student[0] = 3 * student[0]
    actual = differentiate("angle", ops, student, teacher)
    right = differentiate("angle", reference, student.double(), teacher.double())
    assert actual.total.item() == pytest.approx(right.total.item(), rel=1e-5)
    for grad, true in zip(actual.grads, right.grads, strict=True):
        assert (grad.double() - true).abs().max() < 1e-6  # of about 0.1


@pytest.mark.parametrize("loss", LOSSES)
def test_all_rows_equal(backend, loss):
    student = torch.ones(18, 4, device=backend.device)
    for teacher in (student, make(18, 4, 4, dtype=torch.float32, device=backend.device)[0]):
        result = differentiate(loss, ops, student, teacher)
        assert result.total.isfinite()
        assert result.grads[0].count_nonzero() == 0
        assert result.grads[1].isfinite().all()
        check(loss, student, teacher)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_half_precision_of_large_norm(backend, dtype):
    """Rows of norm 320: float16 could not hold the squares."""
    student, teacher = (20 * x for x in make(20, 256, 256, dtype=dtype, device=backend.device))
    assert student.float().norm(dim=1).min() > 280
    check("rkd", student, teacher)


@paired(backend=BACKENDS, bad=[torch.nan, torch.inf], loss=["distance", "angle", "rkd"], where=[0, 1])
def test_nan_shows(backend, loss, where, bad):
    inputs = make(20, 5, 6, dtype=torch.float32, device=backend.device)
    inputs[where][17, 2] = bad
    result = differentiate(loss, ops, *inputs)
    assert result.total.isnan()
    assert result.grads[0].isnan().any()


# ---- conduct ----


@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_inputs_are_not_written_to(backend, dtype):
    inputs = make(18, 33, 20, dtype=dtype, device=backend.device)
    before = [x.clone() for x in inputs]
    differentiate("rkd", ops, *inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_same_inputs_same_bits(backend):
    inputs = make(40, 33, 20, dtype=torch.float32, device=backend.device)
    first, second = (differentiate("rkd", ops, *inputs) for _ in range(2))
    assert first.total.item() == second.total.item()
    assert all(torch.equal(a, b) for a, b in zip(first.grads, second.grads, strict=True))


@needs_kernels
def test_threads_do_not_change_the_bits():
    inputs = make(203, 100, 64, dtype=torch.float32, device="cpu")
    results = on_threads(lambda: differentiate("rkd", ops, *inputs))
    for result in results[1:]:
        assert result.total.item() == results[0].total.item()
        assert all(torch.equal(a, b) for a, b in zip(result.grads, results[0].grads, strict=True))


def test_autocast_leaves_the_loss_alone(backend):
    student, teacher = make(18, 20, 9, dtype=torch.bfloat16, device=backend.device)
    student.requires_grad_()
    plain = ops.rkd_loss(student, teacher).total
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        cast = ops.rkd_loss(student, teacher).total
    assert cast.dtype == torch.float32
    torch.testing.assert_close(cast, plain)
    torch.testing.assert_close(*(torch.autograd.grad(total, student) for total in (cast, plain)))


@needs_kernels
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True), (False, False)])
def test_opcheck(wanted):
    """Every choice of gradients; `test_compile.py` has the dtypes, and traces the losses."""
    student, teacher = make(18, 5, 7, dtype=torch.float32, device="cpu")
    namespace = torch.ops.sftn_fast
    options = (25.0, 50.0, 1e-12, True, True, *wanted)
    torch.library.opcheck(namespace.relational_rkd_forward.default, (student, teacher, *options), test_utils=FAKES)
    total, _, student_pairs, _ = namespace.relational_rkd_forward(student, teacher, *options)
    if wanted[0]:
        torch.library.opcheck(
            namespace.relational_rkd_backward.default, (total, student, student_pairs), test_utils=FAKES
        )


# ---- refusals ----

X = torch.zeros(4, 3)
TYPE_ERRORS = {
    "a list": (lambda: ops.rkd_loss([[0.0]], X), "student must be a tensor, got list"),
    "integers": (lambda: ops.rkd_angle_loss(X, X.long()), "teacher must be float16, .* got torch.int64"),
    "eps text": (lambda: ops.rkd_distance_loss(X, X, eps="0"), "eps must be a number, got str"),
    "weight learned": (
        lambda: ops.rkd_loss(X, X, angle_weight=torch.nn.Parameter(torch.ones(()))),
        "angle_weight must be a number: the loss has no gradient with respect to it",
    ),
}
VALUE_ERRORS = {
    "one dimension": (lambda: ops.rkd_loss(X[0], X), r"student must be \[B, D\] with D at least 1, got \[3\]"),
    "no columns": (lambda: ops.rkd_loss(X, X[:, :0]), r"teacher must be \[B, D\] with D at least 1, got \[4, 0\]"),
    "maps": (lambda: ops.rkd_loss(X[None], X), r"student must be \[B, D\] .* got \[1, 4, 3\]"),
    "batches": (lambda: ops.rkd_loss(X, X[:2]), "teacher must have the batch size of student, 4, got 2"),
    "devices": (lambda: ops.rkd_loss(X, X.to("meta")), "teacher must be on the device of student, cpu, got meta"),
    "eps 0": (lambda: ops.rkd_angle_loss(X, X, eps=0.0), "eps must be a finite number above 0, got 0.0"),
    "weight nan": (
        lambda: ops.rkd_loss(X, X, distance_weight=float("nan")),
        "distance_weight must be a finite number, got nan",
    ),
}


test_type_errors = refusals(TypeError, TYPE_ERRORS)
test_value_errors = refusals(ValueError, VALUE_ERRORS)
