"""WKD: golden values, and what its formula alone has."""

from __future__ import annotations

import pytest
import torch
from families import refusals, wave

from sftn_fast import ops

STUDENT, TEACHER = 3 * wave((4, 10), 0.7, 0.1), 3 * wave((4, 10), 0.3, 0.2, torch.cos)
TARGET = torch.tensor([0, 3, 1, 9])


def authors_cost() -> torch.Tensor:
    """Return the cost of the cosine between classes, at a sharpness of 1."""
    classes = torch.nn.functional.normalize(wave((10, 6), 0.13, 0.2))
    return torch.relu(1 - torch.exp(-(1 - classes @ classes.t()))) + 1e-8


def test_golden_values(backend):
    """What the authors' code gives in float64."""
    student = STUDENT.to(backend.device).clone().requires_grad_()
    inputs = TEACHER.to(backend.device), TARGET.to(backend.device), authors_cost().to(backend.device)
    loss = ops.wkd_loss(student, *inputs)
    loss.backward()
    assert loss.item() == pytest.approx(3.365121148209646, abs=1e-9)
    assert student.grad.square().sum().item() == pytest.approx(0.4822851652514637, abs=1e-9)
    without = ops.wkd_loss(student, *inputs, gamma=0.0)
    assert without.item() == pytest.approx(0.6981733020568438, abs=1e-9)
    assert (loss - without).item() / 30 == pytest.approx(0.08889826153842675, abs=1e-9)


@pytest.mark.parametrize("bad", [-1, -100, 10])
def test_class_out_of_range(backend, bad):
    if backend.device == "cuda":
        pytest.skip("a device-side assertion, after which the process has no GPU")
    target = TARGET.clone()
    target[2] = bad
    with pytest.raises(ValueError, match=f"target must hold classes from 0 to 9, got {bad}"):
        ops.wkd_loss(STUDENT, TEACHER, target, authors_cost())


def call(**changes):
    arguments = {"student_logits": STUDENT, "teacher_logits": TEACHER, "target": TARGET, "cost": authors_cost()}
    return lambda: ops.wkd_loss(**{**arguments, **changes})


test_refuses_types = refusals(
    TypeError,
    {
        "logits": (call(student_logits=1.0), "student_logits must be a tensor, got float"),
        "target": (call(target=TARGET.int()), "target must be int64 class indices, got torch.int32"),
        "cost": (call(cost=None), "cost must be a tensor, got NoneType"),
        "integer cost": (call(cost=torch.ones(10, 10, dtype=torch.int64)), "cost must be float16, bfloat16"),
        "iterations": (call(iterations=2.0), "iterations must be an int, got float"),
    },
)

test_refuses_values = refusals(
    ValueError,
    {
        "target": (call(target=TARGET[:3]), r"target must be \[N\] = \[4\], got \[3\]"),
        "cost": (call(cost=torch.ones(10, 9)), r"cost must be \[C, C\] = \[10, 10\], got \[10, 9\]"),
        "learned cost": (call(cost=torch.ones(10, 10, requires_grad=True)), "cost must not require a gradient"),
        "temperature": (call(temperature=-1.0), "temperature must be a finite number above 0, got -1"),
        "gamma": (call(gamma=float("inf")), "gamma must be a finite number, got inf"),
        "regularization": (call(regularization=0), "regularization must be a finite number above 0, got 0"),
        "iterations": (call(iterations=0), "iterations must be at least 1, got 0"),
    },
)
