"""Cases of the raw RKD ops on the emulated device, compared with float64. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call. ``pad`` columns stand between rows, ``offset`` elements before the first one: both spoil alignment."""

    rows: int = 5
    student_width: int = 7
    teacher_width: int = 9
    dtype: torch.dtype = torch.float32
    distance: bool = True
    angle: bool = True
    angle_weight: float = 5.0
    student_grad: bool = True
    teacher_grad: bool = True
    equal_rows: bool = False
    eps: float = 1e-12
    pad: int = 0
    offset: int = 0
    mean: float = 0.0
    close: float = 0.0  # distance of the second half's rows from the first's, a standard normal's the unit

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    @property
    def scalars(self) -> tuple:
        return 3.0, self.angle_weight, self.eps, self.distance, self.angle, self.student_grad, self.teacher_grad

    def embedding(self, width: int, generator: torch.Generator) -> Tensor:
        """[rows, width] of the case's dtype, inside a larger allocation where it is padded or offset."""
        step = width + self.pad
        flat = torch.zeros(self.offset + self.rows * step, dtype=self.dtype)
        view = flat[self.offset :].view(self.rows, step)[:, :width]
        view.copy_(self.mean + torch.randn(self.rows, width, generator=generator, dtype=torch.float64))
        if self.close:
            half = self.rows // 2
            view[half : 2 * half] = view[:half] + self.close * view[half : 2 * half]
        if self.equal_rows:
            view[1::3] = view[0].clone()
        return view

    def inputs(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.student_width)
        return [self.embedding(width, generator) for width in (self.student_width, self.teacher_width)]


def oracle(case: Case, embeddings: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Compute (total, distance, angle) and the gradients for a grad_total of 1.7, in float64 by autograd."""
    leaves = [x.detach().double().requires_grad_() for x in embeddings]
    b = case.rows
    distances, cosines = [], []
    for x in leaves:
        difference = x[None] - x[:, None]
        squared = difference.square().sum(2, keepdim=True)
        distance = squared[..., 0].clamp(min=case.eps).sqrt() * (1 - torch.eye(b, dtype=torch.float64))
        distances.append(distance / (distance.sum() / (b * (b - 1))))
        length = torch.where(squared == 0, 1, squared).sqrt().clamp(min=case.eps)  # between equal rows: 0 / 1
        cosines.append((difference / length) @ (difference / length).transpose(1, 2))
    parts = [F.smooth_l1_loss(*distances) * case.distance, F.smooth_l1_loss(*cosines) * case.angle]
    total = 3 * parts[0] + case.angle_weight * parts[1]
    grads = torch.autograd.grad(total, leaves, torch.tensor(1.7, dtype=torch.float64))
    return [value.detach() for value in (total, *parts)], list(grads)


def run_case(case: Case) -> None:
    """Run the emulated kernels forward and backward. AssertionError where they differ from the oracle."""
    ops = torch.ops.sftn_fast_emulated
    embeddings = case.inputs()
    total, parts, *pairs = ops.relational_rkd_forward(*embeddings, *case.scalars)
    values, right_grads = oracle(case, embeddings)
    accumulator = 1e-11 if case.dtype == torch.float64 else 2e-5
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, accumulator)
    for ours, right in zip((total, *parts), values, strict=True):
        torch.testing.assert_close(ours.double(), right, rtol=accumulator, atol=accumulator)
    wanted = (case.student_grad, case.teacher_grad)
    for x, of_pairs, grad, is_wanted in zip(embeddings, pairs, right_grads, wanted, strict=True):
        if not is_wanted:
            assert of_pairs.shape == (0, 0)
            continue
        assert torch.equal(of_pairs, of_pairs.t())
        ours = ops.relational_rkd_backward(torch.tensor(1.7, dtype=total.dtype), x, of_pairs)
        atol = accumulator * max(float(grad.abs().max()), 1e-2)  # of two rows, the gradient is 0
        atol = max(atol, 1e-7 if case.dtype == torch.float16 else 0.0)
        torch.testing.assert_close(ours.double(), grad, rtol=stored, atol=atol)


DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Each line differs from the default in what it tests.
CASES = [
    *(Case(dtype=dtype) for dtype in DTYPES),
    *(Case(rows=rows) for rows in (2, 3, 15, 16, 17, 31, 32, 33, 49)),
    *(Case(student_width=width, teacher_width=1 + width // 3) for width in (1, 31, 32, 33, 64, 65, 130)),
    *(Case(rows=18, dtype=dtype, pad=3, offset=1) for dtype in DTYPES),
    *(Case(rows=18, student_width=40, dtype=dtype, pad=8) for dtype in DTYPES),
    *(Case(rows=20, dtype=dtype, equal_rows=True) for dtype in (torch.float32, torch.float64)),
    Case(rows=20, eps=2.0, dtype=torch.float64),
    Case(rows=18, distance=False),
    Case(rows=18, angle=False),
    Case(rows=18, angle_weight=0.0),
    Case(rows=18, student_grad=False),
    Case(rows=18, teacher_grad=False),
    Case(rows=18, student_grad=False, teacher_grad=False),
    Case(rows=18, mean=100.0),
    Case(rows=18, close=1e-4),
]
