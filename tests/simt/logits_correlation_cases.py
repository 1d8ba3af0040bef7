"""Cases of DIST's raw ops on the emulated device, and their float64 oracle. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INTER, INTRA = 0.7, 1.3
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ROUNDING = {HALF: 1e-3, BRAIN: 8e-3, SINGLE: 2e-5, DOUBLE: 1e-10}


@dataclass(frozen=True)
class Case:
    """One call. ``pad`` columns stand between rows, ``offset`` elements before the first one: both spoil alignment."""

    rows: int = 5
    classes: int = 10
    dtype: torch.dtype = SINGLE
    temperature: float = 4.0
    pad: int = 0
    offset: int = 0
    equal_rows: bool = False
    student_grad: bool = True
    teacher_grad: bool = True

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    @property
    def options(self) -> tuple[float, float, float]:
        return self.temperature, INTER, INTRA

    def inputs(self) -> list[Tensor]:
        """Return the student's and the teacher's logits, inside a larger allocation if padded or offset."""
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.classes)
        step, sides = self.classes + self.pad, []
        for _ in range(2):
            values = 3 * torch.randn(self.rows, self.classes, generator=generator, dtype=DOUBLE)
            if self.equal_rows:
                values = values[:1].expand(values.shape)
            flat = torch.full((self.offset + self.rows * step,), torch.nan, dtype=self.dtype)
            sides.append(flat[self.offset :].view(self.rows, step)[:, : self.classes].copy_(values))
        return sides


def dist_loss(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def apart(a: Tensor, b: Tensor) -> Tensor:
        a, b = (x - x[:, :1].detach() for x in (a, b))
        a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
        norms = [x.square().sum(1).clamp(min=1e-24).sqrt() for x in (a, b)]
        return case.temperature**2 * (1 - (a * b).sum(1) / (norms[0] * norms[1] + 1e-8)).mean()

    s, t = ((x / case.temperature).softmax(1) for x in (student, teacher))
    inter, intra = apart(s, t), apart(s.t(), t.t())
    return INTER * inter + INTRA * intra, inter, intra


def run_case(case: Case) -> list[Tensor]:
    """Compare the kernels with float64. AssertionError where they differ."""
    inputs, ops = case.inputs(), torch.ops.sftn_fast_emulated
    wanted = (case.student_grad, case.teacher_grad)
    total, parts, rows, columns = ops.dist_forward(*inputs, *case.options)
    grads = ops.dist_backward(torch.full_like(total, 1.7), *inputs, rows, columns, *case.options, *wanted)
    leaves = [x.double().requires_grad_() for x in inputs]
    right, *right_parts = dist_loss(case, *leaves)
    right_grads = torch.autograd.grad(right, leaves, torch.tensor(1.7, dtype=DOUBLE))
    single = 1e-10 if case.dtype == DOUBLE else 2e-5
    for term, right_term in zip((total, *parts), (right, *right_parts), strict=True):
        torch.testing.assert_close(term.double(), right_term.detach(), rtol=single, atol=1e-9)
    expected = [grad for grad, asked in zip(right_grads, wanted, strict=True) if asked]
    for grad, right_grad in zip(grads, expected, strict=True):
        atol = ROUNDING[case.dtype] * (float(right_grad.abs().max()) + 1e-5)
        torch.testing.assert_close(grad.double(), right_grad, rtol=0, atol=atol)
    return [total, parts, rows, columns, *grads]


CASES = [
    *(Case(dtype=dtype) for dtype in (HALF, BRAIN, SINGLE, DOUBLE)),
    *(Case(rows=1, classes=classes) for classes in (1, 7)),
    *(Case(rows=rows, classes=1) for rows in (2, 9)),
    *(Case(rows=rows, classes=33) for rows in (8, 9, 40)),
    *(Case(rows=3, classes=classes, dtype=dtype) for classes in (128, 130) for dtype in (SINGLE, BRAIN)),
    *(Case(rows=4, classes=classes) for classes in (1024, 1029)),
    Case(rows=3, classes=1100, dtype=DOUBLE),
    Case(rows=17, classes=12, pad=3, temperature=1.0),
    Case(rows=17, classes=12, pad=4, offset=1),
    Case(rows=3, classes=1104, dtype=HALF, pad=8),
    Case(rows=20, classes=40, equal_rows=True),
    Case(rows=20, classes=40, equal_rows=True, dtype=DOUBLE),
    Case(student_grad=False),
    Case(teacher_grad=False),
]
