"""The losses on logits: one table over backends, dtypes, shapes and layouts, against float64."""

from __future__ import annotations

import logits_oracle as oracle
import pytest
import torch
from backends import BACKENDS
from families import DTYPES, ids, shapes_for
from logits_table import LOSSES, TOLERANCE, Result, assert_close, differentiate, make
from pairing import paired

from sftn_fast import ops

SHAPES = [(1, 1), (5, 3), (2, 31), (3, 32), (4, 33), (7, 100), (3, 257), (5, 1000), (3, 1001), (2, 2049)]
LARGE = [(3, 10007), (2, 200_000), (300, 101)]


def expected(loss, teacher, students, target) -> Result:
    """Differentiate in float64, on the values that the backend gets."""
    return differentiate(loss, oracle, teacher.double(), [s.double() for s in students], target)


def check(loss, backend, teacher, students, target):
    actual = differentiate(loss, ops, teacher, students, target)
    assert_close(actual, expected(loss, teacher, students, target), teacher.dtype)


@paired(backend=BACKENDS, dtype=DTYPES, loss=LOSSES)
def test_values_and_gradients(backend, loss, dtype):
    for n, c in shapes_for(backend, SHAPES):
        check(loss, backend, *make(loss, n, c, dtype=dtype, device=backend.device))


@paired(
    backend=BACKENDS, dtype=[torch.float32, torch.bfloat16], loss=["kd_ce-smooth", "sftn", "sftn-reverse"], shape=LARGE
)
def test_long_rows_and_many_rows(backend, loss, dtype, shape):
    n, c = shape
    if backend.name == "emulated":
        n, c = min(n, 40), min(c, 10_007)
    check(LOSSES[loss], backend, *make(LOSSES[loss], n, c, dtype=dtype, device=backend.device))


@pytest.mark.parametrize(("temperature", "golden"), [(4.0, 2.821670978906749), (1.0, 1.143223150032633)])
def test_repdistillers_own_value(backend, temperature, golden):
    """What RepDistiller's DistillKL gives in float64 for these logits."""
    steps = torch.arange(40, dtype=torch.float64, device=backend.device).reshape(4, 10)
    student, teacher = 3 * torch.sin(0.7 * steps + 0.1), 3 * torch.cos(0.3 * steps + 0.2)
    assert ops.kd_loss(student, teacher, temperature).item() == pytest.approx(golden, rel=1e-13)
    assert ops.kd_loss(student.float(), teacher.float(), temperature).item() == pytest.approx(golden, rel=1e-6)


def test_row_slices_are_not_copied():
    """A view of 8 rows that are far apart is read in place and costs no memory."""
    if not ops._library.CPU.loaded:
        pytest.skip("no CPU kernels")
    wide = torch.randn(8, 200_000)
    view = wide[:, 5:100_005]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.kd_loss(view, view)
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert allocated < 100_000


@paired(backend=BACKENDS, teacher_dtype=DTYPES, student_dtype=DTYPES)
def test_mixed_dtypes(backend, student_dtype, teacher_dtype):
    loss = LOSSES["kd_ce"]
    teacher, (student,), target = make(loss, 4, 10, dtype=torch.bfloat16, device=backend.device)
    student, teacher = student.to(student_dtype).requires_grad_(), teacher.to(teacher_dtype).requires_grad_()
    terms = ops.kd_ce_loss(student, teacher, target)
    terms.total.backward()
    total, kd, ce = oracle.kd_ce_loss(student, teacher, target)
    double = torch.float64 in (student_dtype, teacher_dtype)
    assert terms.total.dtype == (torch.float64 if double else torch.float32)
    for actual, true in zip(terms, (total, kd, ce), strict=True):
        assert actual.item() == pytest.approx(true.item(), rel=1e-5)
    assert student.grad.dtype == student_dtype
    assert teacher.grad.dtype == teacher_dtype


def test_branches_as_one_tensor(backend):
    teacher, branches, target = make(LOSSES["sftn"], 5, 9, dtype=torch.float32, device=backend.device)
    stacked = torch.stack(branches).requires_grad_()
    one = ops.sftn_loss(teacher, stacked, target)
    one.total.backward()
    several = differentiate(LOSSES["sftn"], ops, teacher, branches, target)
    assert one.total.item() == several.total.item()
    assert stacked.grad.shape == stacked.shape
    torch.testing.assert_close(stacked.grad * -1.5, torch.stack(several.student_grads))


# ---- terms and gradients ----


def test_terms_add_up_and_only_total_has_a_gradient(backend):
    teacher, students, target = make(LOSSES["sftn"], 6, 11, dtype=torch.float32, device=backend.device)
    students = [s.requires_grad_() for s in students]
    kd = ops.kd_ce_loss(students[0], teacher, target, kd_weight=0.7, ce_weight=0.4)
    assert kd.total.item() == pytest.approx(0.7 * kd.kd.item() + 0.4 * kd.ce.item(), rel=1e-6)
    sftn = ops.sftn_loss(teacher, students, target, teacher_weight=0.5, ce_weight=2.0, kl_weight=3.0)
    parts = 0.5 * sftn.teacher_ce + 2.0 * sftn.branch_ce + 3.0 * sftn.branch_kl
    assert sftn.total.item() == pytest.approx(parts.item(), rel=1e-6)
    for terms in (kd, sftn):
        assert [term.requires_grad for term in terms] == [True] + [False] * (len(terms) - 1)
        assert all(term.dim() == 0 and term.dtype == torch.float32 for term in terms)
    true = oracle.sftn_loss(teacher, students, target, teacher_weight=0.5, ce_weight=2.0, kl_weight=3.0)
    for actual, value in zip(sftn, true, strict=True):
        assert actual.item() == pytest.approx(value.item(), rel=1e-5)
    assert ops.sftn_loss(teacher, students, target, teacher_weight=0).teacher_ce.item() == pytest.approx(true[1].item())


@pytest.mark.parametrize("name", ["sftn", "sftn-reverse"])
def test_gradient_of_one_branch(backend, name):
    loss = LOSSES[name]
    teacher, students, target = make(loss, 4, 7, dtype=torch.float64, device=backend.device)
    full = expected(loss, teacher, students, target)
    students[0].requires_grad_()
    (-1.5 * loss.total(ops, teacher, students, target)).backward()
    torch.testing.assert_close(students[0].grad, full.student_grads[0])
    assert all(x.grad is None for x in (teacher, *students[1:]))


# ---- extremes ----


@paired(
    backend=BACKENDS,
    direction=["teacher_to_branch", "branch_to_teacher"],
    dtype=DTYPES,
    temperature=[0.05, 1.0, 4.0, 20.0],
)
def test_extreme_logits(backend, dtype, temperature, direction):
    loss = LOSSES["sftn"]
    teacher, students, target = make(loss, 4, 1100, dtype=dtype, device=backend.device)
    for i, x in enumerate((teacher, *students)):
        x[:, ::3] = -1e4
        x[0, i], x[1, 1050 + i], x[2] = 1e4, 1e4, x[2] + 9000

    class At:
        def __init__(self, module):
            self.sftn_loss = lambda t, s, y: module.sftn_loss(t, s, y, temperature, direction=direction)

    actual = differentiate(loss, At(ops), teacher, students, target)
    true = differentiate(loss, At(oracle), teacher.double(), [s.double() for s in students], target)
    assert torch.isfinite(actual.total)
    # CUDA's one pass rescales a float32 mean of logits 1e4 apart when it meets a larger maximum: one rounding of 1e4.
    slack = 6e-4 if backend.name in ("emulated", "cuda") and dtype != torch.float64 else 0
    assert_close(actual, true, dtype, slack)


class At:
    """A module's losses at a temperature, reduced to the divergence."""

    def __init__(self, module, temperature, direction="teacher_to_branch"):
        only = {"teacher_weight": 0.0, "ce_weight": 0.0, "direction": direction}
        self.kd_loss = lambda s, t: module.kd_loss(s, t, temperature)
        self.kd_ce_loss = lambda s, t, y: module.kd_ce_loss(s, t, y, temperature, kd_weight=1.0, ce_weight=0.0)
        self.sftn_loss = lambda t, s, y: module.sftn_loss(t, s, y, temperature, **only)


DIVERGENCES = [("kd", ""), ("kd_ce", ""), ("sftn", "teacher_to_branch"), ("sftn", "branch_to_teacher")]


def assert_accurate(backend, name, direction, dtype, temperature, change=lambda teacher, student: student):
    """Compare with the float64 reference, which `test_the_limit_of_large_temperatures` verifies."""
    loss = LOSSES[name]
    teacher, students, target = make(loss, 5, 1100, dtype=dtype, device=backend.device)
    students = [change(teacher, student).to(dtype) for student in students]
    actual = differentiate(loss, At(ops, temperature, direction), teacher, students, target)
    wide = teacher.double(), [s.double() for s in students]
    true = differentiate(loss, At(ops.reference, temperature, direction), *wide, target)
    off = TOLERANCE[dtype] * max(1, 1 / temperature)  # exponents have the error of the logits / T
    assert actual.total.item() == pytest.approx(true.total.item(), rel=off)
    for grad, right in zip(actual.grads, true.grads, strict=True):
        assert (grad - right).abs().max() <= off * right.abs().max()


@pytest.mark.parametrize(("name", "direction"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.05, 4.0, 30.0, 1e3, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], **ids)
def test_no_digits_are_lost_at_a_large_temperature(backend, name, direction, dtype, temperature):
    assert_accurate(backend, name, direction, dtype, temperature)


@pytest.mark.parametrize(("name", "direction"), DIVERGENCES)
@pytest.mark.parametrize("apart", [1e-1, 1e-2])
def test_no_digits_are_lost_where_a_student_is_near_its_teacher(backend, name, direction, apart):
    """For logits of about 3, a smaller difference would consist of their last digits only."""
    assert_accurate(backend, name, direction, torch.float32, 2.0, lambda t, s: t + apart * s)


def test_the_limit_of_large_temperatures(backend):
    """Half the variance over classes of the difference of logits."""
    teacher, (student,), _ = make(LOSSES["kd"], 6, 50, dtype=torch.float64, device=backend.device)
    limit = (teacher - student).var(dim=1, unbiased=False).mean() / 2
    assert ops.kd_loss(student, teacher, 1e10).item() == pytest.approx(limit.item(), rel=1e-8)


@pytest.mark.parametrize("temperature", [5.0, 1e4])
def test_classes_ruled_out_where_the_rest_is_near(backend, temperature):
    """Classes that both rule out, one that the teacher alone does, and student's mass where the teacher has none."""
    teacher, (student,), _ = make(LOSSES["kd"], 3, 40, dtype=torch.float64, device=backend.device)
    student = teacher + 0.01 * student
    teacher[0, :20] = student[0, :20] = -torch.inf
    teacher[1, 7] = -torch.inf
    teacher[2, :3], student[2, :3] = -1e6, 0.0
    rows = ops.kd_loss(student, teacher, temperature, reduction="none")
    expected = oracle.kd_loss(student, teacher, temperature, reduction="none")
    torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-9 * temperature**2 * 1e-6)


@paired(backend=BACKENDS, dtype=DTYPES, temperature=[0.05, 1.0, 3.0])
def test_classes_ruled_out(backend, dtype, temperature):
    """-inf in the teacher, in both, and over whole chunks of a row gives a finite loss: 0 * inf counts as 0."""
    teacher, (student,), target = make(LOSSES["kd_ce"], 3, 2100, dtype=dtype, device=backend.device)
    teacher[:, :1200] = -torch.inf
    student[:, 3:1100] = -torch.inf
    target[:] = 2000

    class At:
        def __init__(self, module):
            self.kd_ce_loss = lambda s, t, y: module.kd_ce_loss(s, t, y, temperature)

    actual = differentiate(LOSSES["kd_ce"], At(ops), teacher, [student], target)
    true = differentiate(LOSSES["kd_ce"], At(oracle), teacher.double(), [student.double()], target)
    assert torch.isfinite(actual.total)
    assert_close(actual, true, dtype)


def test_a_class_only_the_student_rules_out_costs_infinity(backend):
    student = torch.tensor([[0.0, -torch.inf]], device=backend.device)
    assert ops.kd_loss(student, torch.zeros(1, 2, device=backend.device)).item() == torch.inf


@paired(backend=BACKENDS, dtype=DTYPES, where=["teacher", "student"])
def test_nan_propagates(backend, dtype, where):
    teacher, (student,), target = make(LOSSES["kd_ce"], 3, 1030, dtype=dtype, device=backend.device)
    teacher[:, 5] = -torch.inf  # where the teacher's weight is 0, the student's NaN must still show
    (teacher if where == "teacher" else student)[1, 5] = torch.nan
    result = differentiate(LOSSES["kd_ce"], ops, teacher, [student], target)
    assert result.total.isnan()
    assert result.student_grads[0][1].isnan().any()
    rows = ops.kd_loss(student, teacher, reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


def test_all_targets_ignored(backend):
    teacher, (student,), _ = make(LOSSES["kd_ce"], 4, 6, dtype=torch.float32, device=backend.device)
    target = torch.full((4,), -100, device=backend.device)
    student.requires_grad_()
    terms = ops.kd_ce_loss(student, teacher, target, kd_weight=0.0, ce_weight=1.0)
    terms.total.backward()
    assert terms.ce.item() == 0
    assert terms.kd.item() > 0
    assert student.grad.count_nonzero() == 0
