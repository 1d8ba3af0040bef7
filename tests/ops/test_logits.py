"""The losses on logits: one table over backends, dtypes, shapes and layouts, against float64."""

from __future__ import annotations

import logits_oracle as oracle
import pytest
import torch
import torch.nn.functional as F
from logits_table import LOSSES, Result, assert_close, differentiate, make

from sftn_fast import ops

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
SHAPES = [(1, 1), (5, 3), (2, 31), (3, 32), (4, 33), (7, 100), (3, 257), (5, 1000), (3, 1001), (2, 2049)]
LARGE = [(3, 10007), (2, 200_000), (300, 101)]
ids = {"ids": lambda value: str(value).removeprefix("torch.")}


def expected(loss, teacher, students, target) -> Result:
    """Differentiated in float64, on the very values that the backend is given."""
    return differentiate(loss, oracle, teacher.double(), [s.double() for s in students], target)


def check(loss, backend, teacher, students, target):
    actual = differentiate(loss, ops, teacher, students, target)
    assert_close(actual, expected(loss, teacher, students, target), teacher.dtype)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_values_and_gradients(backend, loss, dtype):
    for n, c in SHAPES:
        check(loss, backend, *make(loss, n, c, dtype=dtype, device=backend.device))


@pytest.mark.parametrize("shape", LARGE, **ids)
@pytest.mark.parametrize("loss", ["kd_ce-smooth", "sftn", "sftn-reverse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
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


# ---- layouts ----

LAYOUTS = {
    "row slice": lambda x: x.repeat_interleave(2, 0)[::2],
    "column slice": lambda x: torch.cat([x[:, :0].new_full((len(x), 3), 7), x, x], 1)[:, 3 : 3 + x.shape[1]],
    "offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.t().contiguous().t(),
    "column step": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], **ids)
def test_layouts(backend, dtype, layout):
    for name in ("kd-none", "kd_ce", "sftn"):
        teacher, students, target = make(LOSSES[name], 6, 37, dtype=dtype, device=backend.device)
        target = target.repeat_interleave(2)[::2]
        check(LOSSES[name], backend, layout(teacher), [layout(s) for s in students], target)


def test_row_slices_are_not_copied():
    """A view of 8 rows that lie far apart costs no memory of its own: the kernel reads it where it is."""
    if not ops._library.CPU.loaded:
        pytest.skip("no CPU kernels")
    wide = torch.randn(8, 200_000)
    view = wide[:, 5:100_005]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        ops.kd_loss(view, view)
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert allocated < 100_000


@pytest.mark.parametrize("student_dtype", DTYPES, **ids)
@pytest.mark.parametrize("teacher_dtype", DTYPES, **ids)
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


# ---- what may be asked for ----


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


@pytest.mark.parametrize("name", ["kd", "kd-none", "kd_ce", "sftn", "sftn-reverse"])
def test_gradients_only_where_asked(backend, name):
    loss = LOSSES[name]
    teacher, students, target = make(loss, 4, 7, dtype=torch.float64, device=backend.device)
    full = expected(loss, teacher, students, target)
    wanted = [[True, *[False] * len(students)], [False, *[True] * len(students)], [False, True, *[False] * 9]]
    for flags in wanted:
        leaves = [x.detach().requires_grad_(flag) for x, flag in zip([teacher, *students], flags, strict=False)]
        total = loss.total(ops, leaves[0], leaves[1:], target)
        total.backward(torch.linspace(-1.5, 2.5, total.numel(), device=backend.device).double().view(total.shape))
        for leaf, flag, grad in zip(leaves, flags, full.grads, strict=False):
            assert (leaf.grad is not None) == flag
            if flag:
                torch.testing.assert_close(leaf.grad, grad)


def test_without_gradients(backend):
    teacher, students, target = make(LOSSES["sftn"], 4, 7, dtype=torch.float32, device=backend.device)
    students = [s.requires_grad_() for s in students]
    with torch.no_grad():
        quiet = ops.sftn_loss(teacher, students, target)
    assert not quiet.total.requires_grad
    assert quiet.total.item() == ops.sftn_loss(teacher, students, target).total.item()
    with torch.inference_mode():
        assert ops.sftn_loss(teacher, students, target).total.item() == quiet.total.item()


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(backend, name):
    loss = LOSSES[name]
    teacher, students, target = make(loss, 3, 5, dtype=torch.float64, device=backend.device)
    leaves = [x.requires_grad_() for x in (teacher, *students)]
    assert torch.autograd.gradcheck(lambda t, *s: loss.total(ops, t, list(s), target), leaves, eps=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], **ids)
def test_half_precision_is_no_worse_than_pytorch(backend, dtype):
    teacher, (student,), target = make(LOSSES["kd_ce"], 32, 100, dtype=dtype, device=backend.device)

    class Eager:
        @staticmethod
        def kd_ce_loss(s, t, y, temperature=4.0):
            kd = F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction="batchmean") * 16
            return 0.9 * kd + 0.1 * F.cross_entropy(s, y)

    true = expected(LOSSES["kd_ce"], teacher, [student], target)
    ours = differentiate(LOSSES["kd_ce"], ops, teacher, [student], target)
    theirs = differentiate(LOSSES["kd_ce"], Eager, teacher, [student], target)
    assert abs(ours.total - true.total) <= abs(theirs.total - true.total) + 1e-6
    for our_grad, their_grad, grad in zip(ours.grads, theirs.grads, true.grads, strict=True):
        error = (our_grad.double() - grad).abs().max()
        assert error <= (their_grad.double() - grad).abs().max() + 1e-7


# ---- extremes ----


@pytest.mark.parametrize("temperature", [0.05, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
@pytest.mark.parametrize("direction", ["teacher_to_branch", "branch_to_teacher"])
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


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_classes_ruled_out(backend, dtype, temperature):
    """-inf in the teacher, in both, and over whole chunks of a row: finite, as 0 * inf is 0."""
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


@pytest.mark.parametrize("where", ["teacher", "student"])
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_nan_propagates(backend, dtype, where):
    teacher, (student,), target = make(LOSSES["kd_ce"], 3, 1030, dtype=dtype, device=backend.device)
    teacher[:, 5] = -torch.inf  # where the teacher's weight is 0, the student's NaN must still show
    (teacher if where == "teacher" else student)[1, 5] = torch.nan
    result = differentiate(LOSSES["kd_ce"], ops, teacher, [student], target)
    assert result.total.isnan()
    assert result.student_grads[0][1].isnan().any()
    rows = ops.kd_loss(student, teacher, reduction="none")
    assert rows.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_empty_batch(backend, name, dtype):
    result = differentiate(LOSSES[name], ops, *make(LOSSES[name], 0, 5, dtype=dtype, device=backend.device))
    assert result.total.sum().item() == 0
    assert result.total.shape == ((0,) if name == "kd-none" else ())
    assert all(grad.shape == (0, 5) and grad.dtype == dtype for grad in result.grads)


def test_all_targets_ignored(backend):
    teacher, (student,), _ = make(LOSSES["kd_ce"], 4, 6, dtype=torch.float32, device=backend.device)
    target = torch.full((4,), -100, device=backend.device)
    student.requires_grad_()
    terms = ops.kd_ce_loss(student, teacher, target, kd_weight=0.0, ce_weight=1.0)
    terms.total.backward()
    assert terms.ce.item() == 0
    assert terms.kd.item() > 0
    assert student.grad.count_nonzero() == 0


# ---- conduct ----


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, **ids)
def test_inputs_are_not_written_to(backend, name, dtype):
    teacher, students, target = make(LOSSES[name], 5, 33, dtype=dtype, device=backend.device)
    before = [x.clone() for x in (teacher, *students, target)]
    differentiate(LOSSES[name], ops, teacher, students, target)
    assert all(torch.equal(a, b) for a, b in zip((teacher, *students, target), before, strict=True))


def test_same_inputs_same_bits(backend):
    arguments = make(LOSSES["sftn"], 24, 130, dtype=torch.float32, device=backend.device)
    first, second = (differentiate(LOSSES["sftn"], ops, *arguments) for _ in range(2))
    assert first.total.item() == second.total.item()
    assert all(torch.equal(a, b) for a, b in zip(first.grads, second.grads, strict=True))


def test_threads_do_not_change_the_bits():
    arguments = make(LOSSES["sftn"], 257, 1001, dtype=torch.float32, device="cpu")
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(differentiate(LOSSES["sftn"], ops, *arguments))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert result.total.item() == results[0].total.item()
        assert all(torch.equal(a, b) for a, b in zip(result.grads, results[0].grads, strict=True))


def test_autocast_leaves_the_loss_alone(backend):
    teacher, students, target = make(LOSSES["sftn"], 6, 20, dtype=torch.bfloat16, device=backend.device)
    plain = differentiate(LOSSES["sftn"], ops, teacher, students, target)
    with torch.autocast(backend.device, dtype=torch.bfloat16):
        cast = differentiate(LOSSES["sftn"], ops, teacher, students, target)
    assert cast.total.dtype == torch.float32
    torch.testing.assert_close(cast.total, plain.total)
    for a, b in zip(cast.grads, plain.grads, strict=True):
        torch.testing.assert_close(a, b)


def test_second_derivatives_are_refused(backend):
    if not backend.fused:
        pytest.skip("plain PyTorch has second derivatives")
    teacher, (student,), target = make(LOSSES["kd_ce"], 4, 6, dtype=torch.float64, device=backend.device)
    student.requires_grad_()
    total = ops.kd_ce_loss(student, teacher, target).total
    (grad,) = torch.autograd.grad(total, student, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        (total + grad.square().sum()).backward()


def test_forward_mode_is_refused(backend):
    if not backend.fused:
        pytest.skip("plain PyTorch has forward-mode derivatives")
    teacher, (student,), _ = make(LOSSES["kd"], 4, 6, dtype=torch.float64, device=backend.device)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        ops.kd_loss(torch.autograd.forward_ad.make_dual(student, torch.ones_like(student)), teacher)
