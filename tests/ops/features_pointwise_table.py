"""Hint, AB, OH and VID under one signature, `run(module, student, teacher, channel)`, with an oracle in float64.

`module` is `sftn_fast.ops`, `sftn_fast.ops.reference` or this module, which has the formulas as their authors write
them, with masks, for the tests to hold all backends against.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from families import accumulator
from torch import Tensor

ORACLE = sys.modules[__name__]


def hint_loss(student, teacher):
    return (student - teacher).square().mean()


def ab_loss(student, teacher, *, margin=1.0):
    inactive = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
    active = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
    return (inactive + active).sum() / len(student)


def oh_loss(student, teacher, margin):
    target = torch.max(teacher, of_channel(margin, student))
    return ((student - target) ** 2 * ((student > target) | (target > 0))).sum() / len(student)


def vid_loss(mean, log_scale, teacher, *, eps=1e-5):
    variance = of_channel(torch.log(1 + torch.exp(log_scale)) + eps, mean)
    return (0.5 * ((mean - teacher) ** 2 / variance + torch.log(variance))).mean()


def of_channel(vector, features):
    return vector.view(-1, *[1] * (features.dim() - 2))


@dataclass(frozen=True)
class Loss:
    run: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    teacher_grad: bool = True  # differentiable arguments besides the student
    channel_grad: bool = False


LOSSES = {
    "hint": Loss(lambda m, s, t, c: m.hint_loss(s, t)),
    "ab": Loss(lambda m, s, t, c: m.ab_loss(s, t), teacher_grad=False),
    "ab-margin": Loss(lambda m, s, t, c: m.ab_loss(s, t, margin=0.3), teacher_grad=False),
    "oh": Loss(lambda m, s, t, c: m.oh_loss(s, t, c)),
    "vid": Loss(lambda m, s, t, c: m.vid_loss(s, c, t), channel_grad=True),
    "vid-eps": Loss(lambda m, s, t, c: m.vid_loss(s, c, t, eps=0.2), channel_grad=True),
}


@dataclass
class Result:
    total: Tensor
    student: Tensor
    teacher: Tensor | None
    channel: Tensor | None

    @property
    def grads(self) -> list[Tensor]:
        return [grad for grad in (self.student, self.teacher, self.channel) if grad is not None]


def differentiate(loss: Loss, module: Any, student: Tensor, teacher: Tensor, channel: Tensor) -> Result:
    """Return the loss and all its gradients, for a grad_output that is not one."""
    student = student.detach().requires_grad_()
    teacher = teacher.detach().requires_grad_(loss.teacher_grad)
    channel = channel.detach().requires_grad_(loss.channel_grad)
    total = loss.run(module, student, teacher, channel)
    total.backward(torch.full_like(total, -1.7))
    return Result(total.detach(), student.grad, teacher.grad, channel.grad)


def expected(loss: Loss, student: Tensor, teacher: Tensor, channel: Tensor) -> Result:
    """Differentiate in float64, on the values that the backend gets."""
    return differentiate(loss, ORACLE, student.double(), teacher.double(), channel.double())


def make(shape: tuple[int, ...], *, dtype: torch.dtype, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return (student, teacher, channel) with reproducible values, the channel in the accumulator's dtype."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    channel = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    return student.to(dtype).to(device), teacher.to(dtype).to(device), channel.to(accumulator(dtype)).to(device)


# Relative to the largest gradient. Half precision rounds once, when the gradient is stored.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4.5e-3}


def assert_close(actual: Result, true: Result, dtype: torch.dtype) -> None:
    bound = TOLERANCE[accumulator(dtype)]
    assert actual.total.dtype == accumulator(dtype)
    assert actual.total.shape == ()
    torch.testing.assert_close(actual.total.double(), true.total, rtol=bound, atol=bound)
    for name in ("student", "teacher", "channel"):
        grad, right = getattr(actual, name), getattr(true, name)
        assert (grad is None) == (right is None)
        if grad is None:
            continue
        assert grad.dtype == (accumulator(dtype) if name == "channel" else dtype)
        assert grad.shape == right.shape
        # a channel's gradient is a difference of sums of that many terms
        bound = TOLERANCE[accumulator(dtype)] * 5 if name == "channel" else TOLERANCE[dtype]
        bound = bound * right.abs().max().item() + (6e-8 if grad.dtype == torch.float16 else 1e-30)
        torch.testing.assert_close(grad.double(), right, rtol=0, atol=bound, msg=lambda m, name=name: f"{name}: {m}")
