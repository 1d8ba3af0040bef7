"""DIST: golden values, and what its formula alone has."""

from __future__ import annotations

import pytest
import torch
from families import refusals, wave

from sftn_fast import ops

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
