"""The losses on logits under one signature for a table, `run(module, teacher, students, target)`.

`module` is anything with the losses: `sftn_fast.ops`, `sftn_fast.ops.reference` or the float64 `logits_oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from families import accumulator
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    num_students: int
    run: Callable[[Any, Tensor, list[Tensor], Tensor], Any]  # the result: 0-dim, [N], or a tuple that total leads

    def total(self, module: Any, teacher: Tensor, students: list[Tensor], target: Tensor) -> Tensor:
        result = self.run(module, teacher, students, target)
        return result[0] if isinstance(result, tuple) else result


def mixed(classes: Tensor, logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return probabilities [N, C] as of mixed images: two classes a row, whose sum is not 1 in every row."""
    y = F.one_hot(classes, logits.shape[1]).to(dtype)
    if y.shape[1] == 1:  # a gradient of 0, but for the rounding of a product
        return y
    return 0.75 * y + y.roll(1, 0) * torch.linspace(0, 0.5, len(y), dtype=dtype, device=y.device)[:, None]


LOSSES = {
    "kd": Loss(1, lambda m, t, s, y: m.kd_loss(s[0], t)),
    "kd-sum-T3": Loss(1, lambda m, t, s, y: m.kd_loss(s[0], t, 3.0, reduction="sum")),
    "kd-none": Loss(1, lambda m, t, s, y: m.kd_loss(s[0], t, 2, reduction="none")),
    "kd_ce": Loss(1, lambda m, t, s, y: m.kd_ce_loss(s[0], t, y)),
    "kd_ce-smooth": Loss(
        1, lambda m, t, s, y: m.kd_ce_loss(s[0], t, y, 2.5, kd_weight=0.3, ce_weight=2.0, label_smoothing=0.1)
    ),
    "kd_ce-ignore": Loss(1, lambda m, t, s, y: m.kd_ce_loss(s[0], t, y, 8.0, ignore_index=0)),
    "kd_ce-soft": Loss(1, lambda m, t, s, y: m.kd_ce_loss(s[0], t, mixed(y, t))),
    "kd_ce-soft-smooth": Loss(
        1, lambda m, t, s, y: m.kd_ce_loss(s[0], t, mixed(y, t).T.contiguous().T, 3.0, ce_weight=2, label_smoothing=0.1)
    ),
    "sftn-soft": Loss(2, lambda m, t, s, y: m.sftn_loss(t, s, mixed(y, t), 0.5)),
    "sftn": Loss(3, lambda m, t, s, y: m.sftn_loss(t, s, y)),
    "sftn-reverse": Loss(
        2,
        lambda m, t, s, y: m.sftn_loss(
            t, s, y, 2.0, kl_weight=0.7, direction="branch_to_teacher", branch_reduction="sum"
        ),
    ),
}


@dataclass
class Result:
    total: Tensor
    teacher_grad: Tensor
    student_grads: list[Tensor]

    @property
    def grads(self) -> list[Tensor]:
        return [self.teacher_grad, *self.student_grads]


def differentiate(loss: Loss, module: Any, teacher: Tensor, students: list[Tensor], target: Tensor) -> Result:
    """Return the loss and its gradients, for a grad_output that is neither one nor uniform."""
    teacher = teacher.detach().requires_grad_()
    students = [student.detach().requires_grad_() for student in students]
    total = loss.total(module, teacher, students, target)
    weight = torch.linspace(-1.5, 2.5, total.numel() or 1, device=total.device, dtype=total.dtype)
    total.backward(weight.reshape(total.shape) if total.dim() == 0 else weight[: total.numel()])
    return Result(total.detach(), teacher.grad, [student.grad for student in students])


def make(loss: Loss, n: int, c: int, *, dtype: torch.dtype, device: str, spread: float = 3.0, seed: int = 0) -> Any:
    """Return (teacher, students, target) with reproducible values."""
    generator = torch.Generator().manual_seed(seed)
    logits = [
        spread * torch.randn(n, c, generator=generator, dtype=torch.float64) for _ in range(1 + loss.num_students)
    ]
    teacher, *students = (x.to(dtype).to(device) for x in logits)
    return teacher, students, torch.randint(c, (n,), generator=generator).to(device)


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 3e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def assert_close(actual: Result, expected: Result, dtype: torch.dtype, slack: float = 0) -> None:
    loss_tolerance = TOLERANCE[accumulator(dtype)]
    assert actual.total.dtype == accumulator(dtype)
    assert actual.total.shape == expected.total.shape
    torch.testing.assert_close(actual.total.double(), expected.total, rtol=loss_tolerance, atol=loss_tolerance)
    for grad, true in zip(actual.grads, expected.grads, strict=True):
        assert grad.dtype == dtype
        assert grad.shape == true.shape
        bound = TOLERANCE[dtype] * (true.abs().max().item() if true.numel() else 0)
        bound += slack + (6e-8 if dtype == torch.float16 else 1e-12)  # half's smallest step
        torch.testing.assert_close(grad.double(), true.double(), rtol=0, atol=bound)
