"""Cases of the raw ops on attention on the emulated device, and their float64 oracle. Imports no package's kernels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """One call. Power 0 compares the maps themselves. ``offset`` elements before a map spoil its alignment."""

    n: int = 2
    channels: int = 6
    teacher_channels: int = 9
    height: int = 4
    width: int = 4
    power: float = 2.0
    absolute: bool = False
    dtype: torch.dtype = torch.float32
    student_last: bool = False  # channels last
    teacher_last: bool = False
    offset: int = 0
    student_grad: bool = True
    teacher_grad: bool = True

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    def maps(self) -> tuple[Tensor, Tensor]:
        """Make the student's and the teacher's map, each at the end of its allocation."""
        generator = torch.Generator().manual_seed(self.channels * 1000 + self.height)
        teacher_channels = self.teacher_channels if self.power > 0 else self.channels
        return (
            self.map(self.channels, self.student_last, generator),
            self.map(teacher_channels, self.teacher_last, generator),
        )

    def map(self, channels: int, is_last: bool, generator: torch.Generator) -> Tensor:
        values = torch.randn(self.n, channels, self.height, self.width, generator=generator, dtype=torch.float64)
        values = values.permute(0, 2, 3, 1) if is_last else values
        flat = torch.zeros(self.offset + values.numel(), dtype=self.dtype)
        dense = flat[self.offset :].view(values.shape).copy_(values)
        return dense.permute(0, 3, 1, 2) if is_last else dense


UPSTREAM = 1.7


def row(features: Tensor, power: float) -> Tensor:
    return (features.abs().pow(power).mean(1) if power > 0 else features).flatten(1)


def oracle(case: Case, student: Tensor, teacher: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Compute the loss and its gradients in float64, from the kernels' inputs."""
    leaves = [x.detach().double().requires_grad_() for x in (student, teacher)]
    apart = F.normalize(row(leaves[0], case.power)) - F.normalize(row(leaves[1], case.power))
    loss = (apart.abs() if case.absolute else apart.square()).mean()
    return loss.detach(), list(torch.autograd.grad(UPSTREAM * loss, leaves))


def run_case(case: Case) -> None:
    """Forward and backward on the emulated kernels. AssertionError where they differ from float64."""
    ops = torch.ops.sftn_fast_emulated
    student, teacher = case.maps()
    options = (case.power, case.absolute)
    loss, maps, stats = ops.features_attention_forward(student, teacher, *options)
    wanted = (case.student_grad, case.teacher_grad)
    upstream = torch.full_like(loss, UPSTREAM)
    grads = ops.features_attention_backward(upstream, student, teacher, maps, stats, *options, *wanted)

    right_loss, right_grads = oracle(case, student, teacher)
    accumulator = 1e-12 if case.dtype == torch.float64 else 1e-5
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, 3 * accumulator)
    torch.testing.assert_close(loss.double(), right_loss, rtol=accumulator, atol=accumulator * 1e-2)
    assert len(grads) == sum(wanted)
    if case.power > 0:
        right_maps = torch.stack([row(x.double(), case.power) for x in (student, teacher)])
        torch.testing.assert_close(maps.double(), right_maps, rtol=accumulator, atol=0)
    right_grads = [grad for grad, is_wanted in zip(right_grads, wanted, strict=True) if is_wanted]
    for grad, right in zip(grads, right_grads, strict=True):
        smallest = 1e-7 if case.dtype == torch.float16 else 1e-15
        torch.testing.assert_close(grad.double(), right, rtol=0, atol=stored * float(right.abs().max()) + smallest)


HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BRAIN, SINGLE, DOUBLE)
LAYOUTS = tuple(product((False, True), repeat=2))

# Each line differs from the default in what it is there for.
CASES = [
    *(
        Case(dtype=dtype, channels=8, student_last=s, teacher_last=t, offset=offset)
        for dtype in DTYPES
        for s, t in LAYOUTS
        for offset in (0, 1)
    ),
    *(Case(power=power, dtype=dtype) for power in (0.5, 1.0, 3.0) for dtype in (BRAIN, SINGLE, DOUBLE)),
    *(Case(absolute=True, student_last=s, teacher_last=t) for s, t in LAYOUTS),
    # one pixel a sample, few, an odd number, more than a tile: in packs, in single pixels, and with a last short tile
    *(Case(height=h, width=w, absolute=True) for h, w in ((1, 2), (2, 2), (3, 3), (7, 7), (16, 20), (13, 15), (9, 29))),
    *(Case(height=h, width=w, dtype=HALF) for h, w in ((1, 8), (7, 7), (24, 24), (5, 27))),
    # planes that are whole packs together only, with several slices, and one tile of more threads than usual
    *(Case(channels=c, teacher_channels=24, height=7, width=7, dtype=t) for c in (8, 80, 400) for t in (HALF, SINGLE)),
    *(Case(channels=16, height=h, width=w, dtype=HALF, power=3.0) for h, w in ((1, 1), (2, 2), (3, 5), (14, 14))),
    Case(channels=8, teacher_channels=16, height=15, width=15, dtype=BRAIN),
    Case(channels=8, teacher_channels=16, height=17, width=17, dtype=BRAIN),
    # more channels than one round of the groups takes, and than one slice
    *(
        Case(channels=700, teacher_channels=3, height=h, width=2, dtype=dtype)
        for h in (1, 2, 4)
        for dtype in (SINGLE, HALF)
    ),
    Case(n=1, channels=1500, height=3, width=3),
    *(Case(channels=c, student_last=True, height=3, width=3) for c in (1, 2, 31, 64, 100, 515)),
    *(Case(channels=c, student_last=True, height=2, width=2, dtype=BRAIN) for c in (8, 24, 264)),
    Case(n=70, channels=3, teacher_channels=2, height=2, width=2),
    *(Case(student_grad=s, teacher_grad=not s, power=power) for s in (True, False) for power in (2.0, 0.0)),
    # the maps themselves
    *(Case(power=0.0, absolute=True, dtype=dtype, offset=offset) for dtype in DTYPES for offset in (0, 1)),
    Case(power=0.0, absolute=True, student_last=True, teacher_last=True, channels=5, height=3, width=3),
    Case(power=0.0, channels=40, height=9, width=9),
    Case(power=0.0, absolute=True, channels=65, height=8, width=8, dtype=BRAIN),
    Case(power=0.0, absolute=True, n=40, channels=1, height=1, width=3),
]
