"""DKD, NKD, RLD, TTM, the divergences and standardised KD: golden values, edge cases and errors.

What these losses share with all others is tested over `every_op.py`.
"""

from __future__ import annotations

import pytest
import torch
from families import refusals, wave

from sftn_fast import ops
from sftn_fast.ops import reference

STUDENT, TEACHER = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)
TARGET = torch.tensor([0, 3, 1, 9])
DIVERGENCES = {
    "ab": {"kind": "ab"},
    "jsd": {"kind": "jsd"},
    "tvd": {"kind": "tvd"},
    "reverse_kl": {"kind": "reverse_kl"},
    "skew_kl": {"kind": "skew_kl", "alpha": 0.1},
    "skew_reverse_kl": {"kind": "skew_reverse_kl", "alpha": 0.1},
}


def first(result):
    return result[0] if isinstance(result, tuple) else result


def divergence(**options):
    return lambda module, s, t, y: module.divergence_loss(s, t, **options)


def with_target(function, *args, **options):
    return lambda module, s, t, y: getattr(module, function)(s, t, y, *args, **options)


def without_target(function, *args, **options):
    return lambda module, s, t, y: getattr(module, function)(s, t, *args, **options)


LOSSES = {
    **{name: divergence(**options) for name, options in DIVERGENCES.items()},
    "dkd": with_target("dkd_loss"),
    "dkd-standardized": with_target("dkd_loss", 2.0, nontarget_weight=2.0, standardize=True),
    "nkd": with_target("nkd_loss"),
    "nkd-T3": with_target("nkd_loss", 3.0, gamma=3.5),
    "rld": with_target("rld_loss"),
    "rld-same-T": with_target("rld_loss", confidence_temperature=4.0),
    "ttm": without_target("ttm_loss"),
    "wttm": without_target("ttm_loss", weighted=True),
    "kd-standardized": without_target("kd_loss", 2.0, standardize=True),
}
"""A loss of each kind, called with a module, student, teacher and target."""
OF_OTHERS = {name: LOSSES[name] for name in ("dkd", "dkd-standardized", "nkd", "nkd-T3", "rld", "rld-same-T")}
"""Those that compare the classes other than the label's, or some of them."""
OF_ALL = {name: loss for name, loss in LOSSES.items() if name not in OF_OTHERS}

each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())

# What the authors' code gives in float64, except for the skew divergences, whose value leaves out a constant there.
# Then, where given, the squared norm of the student's gradient.
GOLDEN = {
    "ab": (LOSSES["ab"], [0.8342954267871591], 0.03259130387635348),
    "ab-T4": (divergence(temperature=4.0), [0.14050059451297536], None),
    "ab-hellinger": (divergence(alpha=0.5, beta=0.5), [1.1415978288942839], None),
    "ab-squared": (divergence(alpha=1.0, beta=1.0), [0.12125325377466195], None),
    "jsd-0.5": (divergence(kind="jsd", beta=0.5), [0.24095429824099296], 0.0022680267240870154),
    "jsd-0.1": (divergence(kind="jsd", beta=0.1), [0.09214051831458892], 0.0003468076314771082),
    "jsd-0.9": (divergence(kind="jsd", beta=0.9), [0.11278118435463023], None),
    "reverse_kl": (LOSSES["reverse_kl"], [1.8439509063188697], 0.23712629098836002),
    "tvd": (LOSSES["tvd"], [0.5327167516528268], 0.00766806976571405),
    "skew_kl-0.1": (LOSSES["skew_kl"], [0.775343981914794], 0.023628444535261812),
    "skew_kl-0.9": (divergence(kind="skew_kl", alpha=0.9), [0.031824914596612845], None),
    "skew_reverse_kl-0.1": (LOSSES["skew_reverse_kl"], [0.8413876121767869], 0.028054292800329374),
    "skew_reverse_kl-0.9": (divergence(kind="skew_reverse_kl", alpha=0.9), [0.01622902235901057], None),
    "dkd": (LOSSES["dkd"], [23.926962602379117, 0.21915734678851165, 2.963475656948826], None),
    "dkd-standardized": (
        LOSSES["dkd-standardized"],
        [1.2995175612902152, 0.050057472150831665, 0.6247300445696918],
        None,
    ),
    "kd-standardized": (LOSSES["kd-standardized"], [0.598802310127021], 0.003329092200979984),
    "kd-standardized-T4": (without_target("kd_loss", 4.0, standardize=True), [0.669595974960533], None),
    "kd_ce-standardized": (
        with_target("kd_ce_loss", 2.0, kd_weight=9.0, ce_weight=0.1, standardize=True),
        [9 * 0.598802310127021 + 0.1 * 2.5766489303143194, 0.598802310127021, 2.5766489303143194],
        None,
    ),
    "nkd": (LOSSES["nkd"], [4.319939783286616], 0.1626912338564463),
    "nkd-T3": (LOSSES["nkd-T3"], [73.56587517113174], None),
    "ttm-0.1": (LOSSES["ttm"], [1.4079282216370554], 0.03784209560009656),
    "ttm-0.2": (without_target("ttm_loss", gamma=0.2), [1.339500804458576], None),
    "ttm-0.5": (without_target("ttm_loss", gamma=0.5), [1.1979064640131312], None),
    "wttm-0.1": (LOSSES["wttm"], [9.830386828275342], 1.843484293543729),
    "wttm-0.2": (without_target("ttm_loss", gamma=0.2, weighted=True), [6.79577690653228], None),
    "wttm-0.5": (without_target("ttm_loss", gamma=0.5, weighted=True), [2.850847843732619], None),
    "rld": (LOSSES["rld"], [15.79339244569035], 7.906180459439181),
    "rld-same-T": (LOSSES["rld-same-T"], [15.662248716242505], 7.811167726102106),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_authors_own_values(backend, name):
    loss, values, squared_norm = GOLDEN[name]
    student, teacher, target = (x.to(backend.device) for x in (STUDENT, TEACHER, TARGET))
    student = student.clone().requires_grad_()
    result = loss(ops, student, teacher, target)
    terms = result if isinstance(result, tuple) else (result,)
    assert [term.item() for term in terms] == pytest.approx(values, rel=1e-12)
    (grad,) = torch.autograd.grad(terms[0], student)
    if squared_norm is not None:
        assert grad.square().sum().item() == pytest.approx(squared_norm, rel=1e-12)
    in_float32 = first(loss(ops, student.detach().float(), teacher.float(), target))
    assert in_float32.item() == pytest.approx(values[0], rel=1e-5)


def test_gradient_of_standardised_distillation(backend):
    student = STUDENT.to(backend.device).clone().requires_grad_()
    ops.kd_loss(student, TEACHER.to(backend.device), 2.0, standardize=True).backward()
    golden = torch.tensor([-0.018949755278065, -0.006587169655407, 0.004267553207483], dtype=torch.float64)
    torch.testing.assert_close(student.grad[0, :3].cpu(), golden, rtol=0, atol=1e-14)


def test_label_at_the_teachers_minimum_leaves_no_ranking(backend):
    student, teacher = STUDENT.to(backend.device), TEACHER.to(backend.device)
    target = torch.tensor([9, 3, 1, 9], device=backend.device)
    loss = ops.rld_loss(student, teacher, target, confidence_temperature=4.0)
    assert loss.item() == pytest.approx(14.340747152585642, rel=1e-12)
    student = student.clone().requires_grad_()
    total = ops.rld_loss(student, teacher, teacher.argmin(dim=1), confidence_weight=0.0)
    total.backward()
    assert total.item() == 0 and student.grad.count_nonzero() == 0


# ---- edges ----


def evaluate(module, loss, student, teacher, target):
    student = student.detach().clone().requires_grad_()
    total = first(loss(module, student, teacher, target))
    (grad,) = torch.autograd.grad(total, student)
    return total.detach().double(), grad.double()


def assert_as_in_float64(loss, student, teacher, target, rtol=1e-4, slack=1e-6):
    """Compare with the reference in float64. ``slack`` is for values and gradients that vanish beside probabilities."""
    total, grad = evaluate(ops, loss, student, teacher, target)
    true_total, true_grad = evaluate(reference, loss, student.double(), teacher.double(), target)
    torch.testing.assert_close(total, true_total, rtol=rtol, atol=slack)
    torch.testing.assert_close(grad, true_grad, rtol=0, atol=rtol * true_grad.abs().max().item() + slack)


def draw(n, c, device, spread=3.0):
    generator = torch.Generator().manual_seed(c)
    student, teacher = (spread * torch.randn(n, c, generator=generator) for _ in range(2))
    return student.to(device), teacher.to(device), torch.randint(c, (n,), generator=generator).to(device)


# NKD's value keeps the teacher's entropy, and TTM's and RLD's student differs from the teacher at every step.
NEAR = {name: loss for name, loss in LOSSES.items() if name not in ("nkd", "nkd-T3", "ttm", "wttm")}


@pytest.mark.parametrize("loss", NEAR.values(), ids=NEAR.keys())
@pytest.mark.parametrize("apart", [1e-1, 1e-3])
def test_a_student_near_its_teacher_keeps_digits(backend, loss, apart):
    """Losses down to 1e-9 in float32, a thousandth of the rounding of the logarithms that they are differences of."""
    student, teacher, _ = draw(5, 100, backend.device)
    target = teacher.argmax(dim=1)  # where another class is the largest, RLD compares different probabilities
    assert_as_in_float64(
        loss, teacher + apart * student, teacher, target, rtol=2e-3 if apart == 1e-3 else 1e-4, slack=0
    )


@pytest.mark.parametrize("loss", NEAR.values(), ids=NEAR.keys())
def test_equal_networks_lose_nothing(backend, loss):
    _, teacher, _ = draw(5, 100, backend.device)
    total, grad = evaluate(ops, loss, teacher, teacher, teacher.argmax(dim=1))
    assert total.abs() < 1e-12
    assert grad.abs().max() < 1e-7


@each_loss
@pytest.mark.parametrize("classes", [1, 2, 3, 20_000])
def test_few_and_many_classes(backend, loss, classes):
    if backend.name == "emulated" and classes > 3:
        classes = 3_000
    student, teacher, target = draw(3 if classes < 9 else 1, classes, backend.device)
    total, grad = evaluate(ops, loss, student, teacher, target)
    assert total.isfinite() and grad.isfinite().all()
    if classes == 1:
        assert total == 0 and grad == pytest.approx(torch.zeros(3, 1))
    else:
        assert_as_in_float64(loss, student, teacher, target)


@each_loss
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_large_logits(backend, loss, size):
    student, teacher, target = draw(6, 33, backend.device, spread=size)
    assert_as_in_float64(loss, student, teacher, target)


@pytest.mark.parametrize("loss", OF_ALL.values(), ids=OF_ALL.keys())
@pytest.mark.parametrize("what", [-torch.inf, torch.nan], ids=["-inf", "nan"])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_a_row_without_a_distribution_shows(backend, loss, what, whose):
    """In the value and in the gradient of that row, so that no training goes on with it unnoticed."""
    student, teacher, target = draw(3, 10, backend.device)
    (student if whose == "student" else teacher)[1] = what
    total, grad = evaluate(ops, loss, student, teacher, target)
    assert total.isnan()
    assert grad[1].isnan().any() or not backend.fused  # PyTorch's slope of |NaN| is 0
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("name", ["kd-standardized", "dkd-standardized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_standardised_logits_that_are_not_finite_show(backend, name, dtype):
    for whose in (0, 1):
        for place in (0, 4):
            *logits, target = draw(3, 10, backend.device)
            logits = [x.to(dtype) for x in logits]
            logits[whose][1, place] = -torch.inf
            total, grad = evaluate(ops, LOSSES[name], *logits, target)
            assert total.isnan() and grad[1].isnan().any()


FINITE_ONLY = ("dkd-standardized", "kd-standardized")
RULING_OUT = {name: loss for name, loss in LOSSES.items() if name not in FINITE_ONLY}


@pytest.mark.parametrize("loss", RULING_OUT.values(), ids=RULING_OUT.keys())
def test_classes_that_both_rule_out_count_for_nothing(backend, loss):
    student, teacher, _ = draw(4, 20, backend.device)
    target = torch.tensor([0, 3, 1, 7], device=backend.device)
    few = evaluate(ops, loss, student[:, :15], teacher[:, :15], target)
    for x in (student, teacher):
        x[:, 15:] = -torch.inf
    total, grad = evaluate(ops, loss, student, teacher, target)
    assert total.item() == pytest.approx(few[0].item(), rel=1e-5)
    torch.testing.assert_close(grad[:, :15], few[1], rtol=1e-4, atol=1e-6)
    assert grad[:, 15:].count_nonzero() == 0


@pytest.mark.parametrize("loss", ["dkd", "nkd", "nkd-T3", "rld", "rld-same-T"])
@pytest.mark.parametrize("c", [2, 7, 130, 3000])
def test_a_teacher_that_rules_out_every_other_class(backend, loss, c):
    """Their part is 0, and the label's term still moves the student's logits of all classes."""
    student, teacher, target = draw(5, c, backend.device)
    rows = torch.arange(4)
    kept = teacher[rows, target[:4]]
    teacher[:4] = -torch.inf  # the last row is like others
    teacher[rows, target[:4]] = kept
    assert_as_in_float64(LOSSES[loss], student, teacher, target)
    for dtype in (torch.float64, torch.bfloat16):
        total, grad = evaluate(ops, LOSSES[loss], student.to(dtype), teacher.to(dtype), target)
        assert total.isfinite() and grad.isfinite().all()
        assert (grad[:4].abs().sum(1) > 0).all()


@pytest.mark.parametrize("loss", RULING_OUT.values(), ids=RULING_OUT.keys())
def test_classes_that_the_teacher_rules_out(backend, loss):
    student, teacher, _ = draw(4, 20, backend.device)
    target = torch.tensor([0, 3, 1, 7], device=backend.device)
    teacher[:, 15:] = -torch.inf
    true = evaluate(reference, loss, student.double(), teacher.double(), target)
    actual = evaluate(ops, loss, student, teacher, target)
    if true[0].isfinite():
        torch.testing.assert_close(actual[0], true[0], rtol=1e-5, atol=0)
        torch.testing.assert_close(actual[1], true[1], rtol=0, atol=1e-4 * true[1].abs().max().item())
    else:
        assert actual[0] == true[0]  # KL(student || teacher) is infinite


@pytest.mark.parametrize("name", FINITE_ONLY)
def test_rows_of_equal_logits_have_large_and_finite_gradients(backend, name):
    student, teacher, target = draw(3, 10, backend.device)
    student[0] = 5.0
    teacher[1] = -2.0
    student[2] = teacher[2] = 0.0
    assert_as_in_float64(LOSSES[name], student, teacher, target)
    assert evaluate(ops, LOSSES[name], student, teacher, target)[1][0].abs().max() > 1e4


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_standardisation_removes_mean_and_scale(backend, mean):
    student, teacher, _ = draw(5, 40, backend.device)
    plain = ops.kd_loss(student, teacher, 2.0, standardize=True)
    moved = ops.kd_loss(8 * student + mean, teacher / 4 - mean, 2.0, standardize=True)
    assert moved.item() == pytest.approx(plain.item(), rel=1e-3 if mean else 1e-5)
    (grad,) = torch.autograd.grad(ops.kd_loss(student.requires_grad_(), teacher, 2.0, standardize=True), student)
    assert grad.sum(dim=1).abs().max() < 1e-7
    assert (grad * student.detach()).sum(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("limit", "same"),
    [
        (divergence(kind="skew_kl", alpha=0.0), without_target("kd_loss", 1.0)),
        (divergence(kind="skew_reverse_kl", alpha=0.0), divergence(kind="reverse_kl")),
        (divergence(kind="ab", alpha=1.0, beta=1.0), lambda module, s, t, y: _half_squared(s, t)),
        (with_target("rld_loss", confidence_temperature=4.0), with_target("dkd_loss")),
    ],
    ids=["skew_kl is kl", "skew_reverse_kl is reverse_kl", "ab is half the squares", "rld is dkd"],
)
def test_special_cases(backend, limit, same):
    student, teacher, _ = draw(5, 12, backend.device)
    target = teacher.argmax(dim=1)  # a teacher that is right
    one, other = (evaluate(ops, loss, student, teacher, target) for loss in (limit, same))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def _half_squared(student, teacher):
    return 0.5 * (student.softmax(dim=1) - teacher.softmax(dim=1)).square().sum() / len(student)


@pytest.mark.parametrize(
    "options", [{"kind": "jsd", "beta": 0}, {"kind": "jsd", "beta": 1}, {"kind": "skew_kl", "alpha": 1}]
)
def test_divergences_that_are_always_zero(backend, options):
    student, teacher, target = draw(5, 12, backend.device)
    total, grad = evaluate(ops, divergence(**options), student, teacher, target)
    assert total.abs() < 1e-6 and grad.abs().max() < 1e-6


def test_terms_are_those_of_the_total(backend):
    student, teacher, target = draw(5, 12, backend.device)
    terms = ops.dkd_loss(student.requires_grad_(), teacher, target, target_weight=0.5, nontarget_weight=2.0)
    assert terms.total.item() == pytest.approx(0.5 * terms.target.item() + 2 * terms.nontarget.item(), rel=1e-6)
    assert [term.requires_grad for term in terms] == [True, False, False]


@pytest.mark.parametrize(
    ("classes", "options"),
    [
        (True, {}),
        (True, {"ignore_index": 3}),
        (True, {"label_smoothing": 0.1}),
        (True, {"kd_weight": 0.0, "ce_weight": 2.0}),
        (False, {}),
    ],
    ids=["classes", "ignored", "smooth", "ce alone", "probabilities"],
)
def test_cross_entropy_beside_standardised_distillation(backend, classes, options):
    """Kernels compute both at once where they can; the cross-entropy is of the logits as they are."""
    student, teacher, _ = draw(4, 20, backend.device)
    target = torch.tensor([0, 3, 1, 7], device=backend.device)
    if not classes:
        target = torch.rand(4, 20, device=backend.device)
    loss = with_target("kd_ce_loss", 2.0, **options, standardize=True)
    assert_as_in_float64(loss, student, teacher, target)
    one, other = loss(ops, student, teacher, target), loss(reference, student, teacher, target)
    assert [x.item() for x in one] == pytest.approx([x.item() for x in other], rel=1e-5)


def test_rows_without_a_class_have_no_cross_entropy(backend):
    student, teacher, _ = draw(4, 20, backend.device)
    nowhere = torch.full((4,), -100, device=backend.device)
    loss = with_target("kd_ce_loss", 2.0, kd_weight=1.0, standardize=True)
    total, grad = evaluate(ops, loss, student, teacher, nowhere)
    alone, grad_alone = evaluate(ops, LOSSES["kd-standardized"], student, teacher, nowhere)
    assert loss(ops, student, teacher, nowhere).ce.item() == 0
    assert total.item() == pytest.approx(alone.item(), rel=1e-6)
    torch.testing.assert_close(grad, grad_alone)


def test_second_backward_pass(backend):
    student, teacher, target = draw(5, 12, backend.device)
    student.requires_grad_()
    total = ops.dkd_loss(student, teacher, target).total
    (kept,) = torch.autograd.grad(total, student, retain_graph=True)
    expected = kept.clone()
    kept.zero_()  # the caller's own tensor
    (again,) = torch.autograd.grad(2 * total, student)
    torch.testing.assert_close(again, 2 * expected)


# ---- errors ----

X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
LEARNED = torch.zeros(4, 3, requires_grad=True)

VALUE_ERRORS = {
    "kind": (lambda: ops.divergence_loss(X, X, kind="kl"), "kind must be one of 'ab', 'jsd', .* got 'kl'"),
    "alpha of ab": (lambda: ops.divergence_loss(X, X, alpha=0), "alpha must be a finite number above 0, got 0"),
    "alpha too small": (lambda: ops.divergence_loss(X, X, alpha=1e-3), "alpha must be from 0.01 to 100, got 0.001"),
    "alpha of skew": (
        lambda: ops.divergence_loss(X, X, kind="skew_kl", alpha=1.5),
        "alpha must be from 0 to 1, got 1.5",
    ),
    "beta of jsd": (lambda: ops.divergence_loss(X, X, kind="jsd", beta=-0.1), "beta must be from 0 to 1, got -0.1"),
    "reduction": (lambda: ops.divergence_loss(X, X, reduction="mean"), "reduction must be one of 'batchmean'"),
    "gamma": (lambda: ops.ttm_loss(X, X, gamma=0.0), "gamma must be a finite number above 0, got 0.0"),
    "teacher learns": (
        lambda: ops.nkd_loss(X, LEARNED, Y),
        "teacher_logits must not require a gradient: the loss has none with respect to it",
    ),
    "standardised teacher learns": (
        lambda: ops.kd_loss(X, LEARNED, standardize=True),
        "teacher_logits must not require a gradient",
    ),
    "class out of range": (lambda: ops.dkd_loss(X, X, Y + 3), "target must hold classes from 0 to 2, got 3"),
    "ignored class": (lambda: ops.rld_loss(X, X, Y - 100), "target must hold classes from 0 to 2, got -100"),
    "target length": (lambda: ops.nkd_loss(X, X, Y[:3]), r"target must be \[N\] = \[4\], got \[3\]"),
    "tau": (
        lambda: ops.rld_loss(X, X, Y, confidence_temperature=-1.0),
        "confidence_temperature must be a finite number above 0, got -1.0",
    ),
}
TYPE_ERRORS = {
    "standardize": (lambda: ops.kd_loss(X, X, standardize="no"), "standardize must be True or False, got str"),
    "standardize of dkd": (lambda: ops.dkd_loss(X, X, Y, standardize=1), "standardize must be True or False, got int"),
    "weighted": (lambda: ops.ttm_loss(X, X, weighted=None), "weighted must be True or False, got NoneType"),
    "alpha": (lambda: ops.divergence_loss(X, X, alpha="0.8"), "alpha must be a number, got str"),
    "target": (lambda: ops.dkd_loss(X, X, Y.int()), "target must be int64 class indices, got torch.int32"),
}

test_value_errors = refusals(ValueError, VALUE_ERRORS)
test_type_errors = refusals(TypeError, TYPE_ERRORS)
