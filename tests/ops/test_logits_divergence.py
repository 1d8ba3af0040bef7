"""DKD, NKD, RLD, TTM, the divergences and standardised KD: golden values, edge cases and errors.

What these losses share with all others is tested over `every_op.py`.
"""

from __future__ import annotations

import pytest
import torch
from families import wave

from sftn_fast import ops

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
