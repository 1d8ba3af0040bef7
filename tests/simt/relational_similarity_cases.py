"""Cases of the raw ops of SP and PKT on the emulated device, and their float64 oracle. Imports no kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-7
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64


@dataclass(frozen=True)
class Case:
    """One call. ``pad`` columns stand between the Gram matrices' rows; ``mean`` brings all cosines near 1."""

    loss: str = "sp"
    batch: int = 5
    width: int = 8
    dtype: torch.dtype = SINGLE
    mean: float = 0.0
    scale: float = 1.0
    pad: int = 0
    student_grad: bool = True
    teacher_grad: bool = True
    zero_row: bool = False

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    def features(self) -> list[Tensor]:
        """Make the student's and the teacher's matrices, rounded to the case's dtype."""
        generator = torch.Generator().manual_seed(self.batch)
        sides = []
        for width in (self.width, self.width + 3):
            rows = self.scale * torch.randn(self.batch, width, generator=generator, dtype=DOUBLE) + self.mean
            if self.zero_row:
                rows[self.batch // 2] = 0
            sides.append(rows.to(self.dtype))
        return sides


def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(features: Tensor) -> Tensor:
        gram = features @ features.t()
        norm = gram.norm(dim=1, keepdim=True)
        return torch.where(norm == 0, 0.0, gram / norm.clamp(min=1e-12))

    return (rows(teacher) - rows(student)).square().sum() / len(student) ** 2


def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    def rows(features: Tensor) -> Tensor:
        unit = features / (features.norm(dim=1, keepdim=True) + EPS)
        unit = torch.where(features.detach() == 0, 0.0, unit)
        similarity = (unit @ unit.t() + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    p_student, p_teacher = rows(student), rows(teacher)
    return (p_teacher * ((p_teacher + EPS) / (p_student + EPS)).log()).mean()


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"sp": sp_loss, "pkt": pkt_loss}


def gram_of(rows: Tensor, pad: int) -> Tensor:
    """Return a copy ``[B, B]`` with gaps between rows."""
    wide = torch.full((len(rows), len(rows) + pad), torch.nan, dtype=rows.dtype)
    return wide[:, : len(rows)].copy_(rows @ rows.t())


def run_raw(case: Case, features: list[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
    """Compute the loss and both gradients by the emulated kernels, None where not requested."""
    dtype = DOUBLE if case.dtype == DOUBLE else SINGLE
    rows = [x.to(dtype) for x in features]
    grams = [gram_of(x, case.pad) for x in rows]
    ops = torch.ops.sftn_fast_emulated
    if case.loss == "sp":
        loss, *slopes = ops.sp_forward(*grams, case.student_grad, case.teacher_grad)
    else:
        norms = [x.norm(dim=1) for x in rows]
        loss, *slopes = ops.pkt_forward(*grams, *norms, EPS, case.student_grad, case.teacher_grad)
    asked = (case.student_grad, case.teacher_grad)
    return loss, [slope @ x if grad else None for slope, x, grad in zip(slopes, rows, asked, strict=True)]


def run_case(case: Case) -> None:
    """Compare the kernels with float64. AssertionError where they differ."""
    features = case.features()
    loss, grads = run_raw(case, features)
    leaves = [x.double().requires_grad_() for x in features]
    right = ORACLES[case.loss](*leaves)
    single = 2e-6 * (1 + abs(case.mean)) ** 4  # a mean costs digits of any Gram matrix
    tolerance = 1e-10 if case.dtype == DOUBLE else single
    torch.testing.assert_close(loss.double(), right.detach(), rtol=10 * tolerance, atol=1e-9)
    right_grads = torch.autograd.grad(right, leaves)
    for grad, right_grad in zip(grads, right_grads, strict=True):
        if grad is not None:
            atol = 10 * tolerance * float(right_grad.abs().max()) + 1e-9 / case.scale
            torch.testing.assert_close(grad.double(), right_grad, rtol=0, atol=atol)


CASES = [
    Case(loss=loss, **options)
    for loss in ("sp", "pkt")
    for options in (
        *({"dtype": dtype} for dtype in (HALF, BRAIN, SINGLE, DOUBLE)),
        *({"batch": batch} for batch in (1, 2, 3, 31, 32, 33, 64)),
        *({"batch": batch, "width": 5, "dtype": DOUBLE, "pad": 3} for batch in (7, 70)),
        {"batch": 130, "width": 16, "teacher_grad": False},  # more than a block's threads
        {"mean": 1.0, "width": 20},
        {"mean": 1.0, "width": 20, "dtype": DOUBLE},
        {"scale": 320.0, "dtype": HALF},
        {"student_grad": False},
        {"student_grad": False, "teacher_grad": False},
        {"zero_row": True},
        {"zero_row": True, "dtype": DOUBLE, "batch": 9},
    )
]
