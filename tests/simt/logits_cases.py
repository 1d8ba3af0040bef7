"""Cases of the raw logits ops on the emulated device, and their float64 oracle. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

IGNORE = -100


@dataclass(frozen=True)
class Case:
    """One call. ``pad`` columns stand between rows, ``offset`` elements before the first one: both spoil alignment."""

    rows: int = 3
    classes: int = 10
    students: int = 1
    dtype: torch.dtype = torch.float32
    temperature: float = 4.0
    target: bool = True
    probabilities: bool = False
    smoothing: float = 0.0
    student_to_teacher: bool = False
    by_row: bool = False
    pad: int = 0
    offset: int = 0
    scale: float = 3.0
    shift: float = 0.0

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    @property
    def options(self) -> tuple:
        """Return the raw ops' scalars in order, with weights that distinguish the terms."""
        teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale = 0.7, 1.3, 2.0, 0.5, 1.5 / max(self.rows, 1)
        scales = (self.temperature, teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale)
        return (*scales, self.student_to_teacher, self.by_row, IGNORE, self.smoothing)

    def logits(self, generator: torch.Generator) -> Tensor:
        """[rows, classes] of the case's dtype, inside a larger allocation where it is padded or offset."""
        step = self.classes + self.pad
        flat = torch.zeros(self.offset + self.rows * step, dtype=self.dtype)
        view = flat[self.offset :].view(self.rows, step)[:, : self.classes]
        values = torch.randn(self.rows, self.classes, generator=generator, dtype=torch.float64)
        return view.copy_(values * self.scale + self.shift)

    def inputs(self) -> tuple[Tensor, list[Tensor], Tensor | None]:
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.classes)
        teacher = self.logits(generator)
        students = [self.logits(generator) for _ in range(self.students)]
        if not self.target:
            return teacher, students, None
        if self.probabilities:
            return teacher, students, self.distribution(generator)
        target = torch.randint(self.classes, (self.rows,), generator=generator)
        target[1::3] = IGNORE
        return teacher, students, target

    def distribution(self, generator: torch.Generator) -> Tensor:
        """[rows, classes] of the accumulator's dtype: half of it 0, no row of sum 1; padded as the logits are."""
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        y = torch.rand(self.rows, self.classes + self.pad, generator=generator, dtype=dtype)
        return torch.where(y < 0.5, 0, y)[:, : self.classes]


@dataclass
class Result:
    total: Tensor
    parts: Tensor
    grads: list[Tensor]  # the teacher's, then each student's


def upstream(case: Case) -> Tensor:
    """grad_total: not one, and different from row to row."""
    return torch.linspace(0.5, 2.0, case.rows, dtype=torch.float64) if case.by_row else torch.tensor(1.7).double()


def run_raw(case: Case, teacher: Tensor, students: list[Tensor], target: Tensor | None) -> Result:
    """Run the emulated kernels forward and backward."""
    ops = torch.ops.sftn_fast_emulated
    total, parts, stats = ops.logits_forward(teacher, students, target, *case.options)
    grad = upstream(case).to(total.dtype)
    grads = ops.logits_backward(grad, teacher, students, target, parts, stats, *case.options, True, True)
    return Result(total, parts, grads)


def cross_entropy(logits: Tensor, target: Tensor | None, smoothing: float) -> Tensor:
    if target is None:
        return logits.new_zeros(())
    if target.is_floating_point():
        target = (1 - smoothing) * target.double() + smoothing / logits.shape[1]
        return -torch.where(target == 0, 0, target * logits.log_softmax(1)).sum(1).mean()
    if not (target != IGNORE).any():
        return logits.new_zeros(())
    return torch.nn.functional.cross_entropy(logits, target, ignore_index=IGNORE, label_smoothing=smoothing)


def divergence(teacher: Tensor, student: Tensor, case: Case) -> Tensor:
    """Compute KL for each row, [N], with 0 * inf = 0."""
    log_t = (teacher / case.temperature).log_softmax(1)
    log_s = (student / case.temperature).log_softmax(1)
    log_p, log_q = (log_s, log_t) if case.student_to_teacher else (log_t, log_s)
    impossible = torch.isneginf(log_p)
    ratio = log_p.masked_fill(impossible, 0) - log_q.masked_fill(impossible, 0)
    return (log_p.exp() * ratio).sum(1)


def oracle(case: Case, teacher: Tensor, students: list[Tensor], target: Tensor | None) -> Result:
    """Compute the same in float64 by autograd, from the kernels' inputs."""
    leaves = [x.detach().double().requires_grad_() for x in (teacher, *students)]
    _, teacher_weight, ce_weight, kl_weight, branch_scale, kl_scale, *_ = case.options
    rows = torch.stack([divergence(leaves[0], s, case) for s in leaves[1:]]).sum(0)
    parts = [
        cross_entropy(leaves[0], target, case.smoothing),
        branch_scale * sum(cross_entropy(s, target, case.smoothing) for s in leaves[1:]),
        kl_scale * rows.sum(),
    ]
    if case.by_row:
        total = kl_weight * kl_scale * rows
    else:
        total = teacher_weight * parts[0] + ce_weight * parts[1] + kl_weight * parts[2]
    grads = torch.autograd.grad(total, leaves, upstream(case))
    valid = 0 if target is None else case.rows if case.probabilities else int((target != IGNORE).sum())
    parts.append(torch.tensor(1 / valid if valid else 0.0, dtype=torch.float64))
    return Result(total.detach(), torch.stack(parts).detach(), list(grads))


def check(case: Case, ours: Result, right: Result) -> None:
    """Compare values at the accumulator's precision, and gradients at the precision of their dtype."""
    accumulator = 1e-12 if case.dtype == torch.float64 else 2e-5
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, accumulator)
    torch.testing.assert_close(ours.total.double(), right.total, rtol=accumulator, atol=accumulator)
    torch.testing.assert_close(ours.parts.double(), right.parts, rtol=accumulator, atol=accumulator)
    for name, grad, right_grad in zip(["teacher", *"student " * 99], ours.grads, right.grads, strict=False):
        # log q - log p is as large as the logits and cancels; half precision cannot hold the smallest gradients
        atol = accumulator * float(right_grad.abs().max()) * max(1.0, case.scale / 10)
        atol = max(atol, 1e-7 if case.dtype == torch.float16 else 0.0)
        torch.testing.assert_close(
            grad.double(), right_grad, rtol=stored, atol=atol, msg=lambda text, name=name: f"gradient of {name}: {text}"
        )


def run_case(case: Case) -> list[Tensor]:
    """Compare the kernels with float64 and return their results, which must have the same bits for every schedule."""
    inputs = case.inputs()
    ours = run_raw(case, *inputs)
    check(case, ours, oracle(case, *inputs))
    return [ours.total, ours.parts, *ours.grads]


HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BRAIN, SINGLE, DOUBLE)

# Each line differs from the default in what it tests.
CASES = [
    *(Case(dtype=dtype) for dtype in DTYPES),
    *(Case(classes=classes, students=2) for classes in (1, 2, 31, 33, 100, 257, 1024)),
    *(Case(rows=2, classes=classes, dtype=dtype) for classes in (1025, 5003) for dtype in DTYPES),
    Case(rows=1, classes=20011),
    *(Case(rows=5, classes=37, students=students) for students in (3, 4, 5, 9, 16)),
    *(Case(classes=40, dtype=dtype, pad=8, students=3) for dtype in DTYPES),
    *(Case(classes=37, dtype=dtype, pad=3, offset=1) for dtype in DTYPES),
    Case(rows=2, classes=1028, pad=4, offset=4, students=2),
    Case(rows=2, classes=1027, offset=1, students=4),
    *(Case(temperature=temperature, classes=50) for temperature in (0.05, 0.5, 1.0, 2.0, 3.0, 16.0, 20.0)),
    *(Case(target=False, student_to_teacher=reverse, by_row=by_row) for reverse in (0, 1) for by_row in (0, 1)),
    Case(student_to_teacher=True, students=3, classes=70, dtype=BRAIN),
    Case(student_to_teacher=True, rows=2, classes=1500, smoothing=0.2),
    *(Case(smoothing=0.1, classes=classes, students=3) for classes in (5, 130, 1100)),
    *(Case(probabilities=True, dtype=dtype, classes=40) for dtype in DTYPES),
    *(Case(probabilities=True, dtype=dtype, classes=37, pad=3, students=3) for dtype in (BRAIN, SINGLE)),
    *(Case(probabilities=True, classes=classes, students=5, smoothing=0.1) for classes in (1, 5, 130)),
    *(Case(probabilities=True, classes=1500, rows=2, smoothing=smoothing) for smoothing in (0.0, 0.2)),
    *(Case(probabilities=True, shift=1e4, smoothing=smoothing) for smoothing in (0.0, 0.1)),
    Case(probabilities=True, rows=1, classes=5003, dtype=HALF),
    Case(rows=70, classes=9, students=2),
    Case(rows=1, classes=6),
    Case(rows=300, classes=3),
    *(Case(rows=rows, classes=7, students=2) for rows in (1, 13, 100)),
    Case(rows=40, classes=100, students=3),
    Case(rows=9, classes=1300),
    Case(shift=1e4, smoothing=0.1),
    Case(scale=1e4, classes=64),
    Case(scale=1e4, classes=64, student_to_teacher=True, temperature=1.0),
    replace(Case(), scale=0.0),
]
