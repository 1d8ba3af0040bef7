"""Cases of the raw ops of hint, AB, OH and VID on the emulated device. Imports the kernels of no package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = HINT, AB, OH, VID = range(4)
NAMES = ("hint", "ab", "oh", "vid")
PARAMETER = {HINT: 0.0, AB: 0.7, OH: 0.0, VID: 1e-3}
UPSTREAM = -1.7


@dataclass(frozen=True)
class Case:
    """One call. ``offset`` elements stand before the first one, which spoils alignment."""

    kind: int
    shape: tuple[int, ...] = (3, 5, 4, 4)
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    offset: int = 0

    def __str__(self) -> str:
        text = f"{NAMES[self.kind]},{'x'.join(map(str, self.shape))},{str(self.dtype).removeprefix('torch.')}"
        return text + ",last" * self.channels_last + f",offset={self.offset}" * bool(self.offset)

    @property
    def accumulator(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def scalars(self) -> tuple[int, float, float]:
        return self.kind, PARAMETER[self.kind], 1 / torch.Size(self.shape).numel()

    def map(self, generator: torch.Generator) -> Tensor:
        """[N, C, ...] of the case's dtype and layout, inside a larger allocation where it is offset."""
        values = 1.5 * torch.randn(self.shape, generator=generator, dtype=torch.float64)
        n, c, *spatial = self.shape
        size = (n, *spatial, c) if self.channels_last else self.shape
        memory = torch.zeros(self.offset + values.numel(), dtype=self.dtype)[self.offset :].view(size)
        return (memory.movedim(-1, 1) if self.channels_last else memory).copy_(values)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(sum(self.shape))
        student, teacher = self.map(generator), self.map(generator)
        if self.kind not in (OH, VID):
            return student, teacher, None
        return student, teacher, torch.randn(self.shape[1], generator=generator, dtype=self.accumulator)


def run_raw(case: Case, inputs: tuple[Tensor, Tensor, Tensor | None]) -> list[Tensor]:
    """Compute the loss and the gradients of student, teacher and, for VID, channel by the emulated kernels."""
    ops = torch.ops.sftn_fast_emulated
    total, stats = ops.features_pointwise_forward(*inputs, *case.scalars)
    upstream = torch.full_like(total, UPSTREAM)
    wanted = True, True, case.kind == VID
    return [total, *ops.features_pointwise_backward(upstream, *inputs, stats, *case.scalars, *wanted)]


def oracle(case: Case, inputs: tuple[Tensor, Tensor, Tensor | None]) -> list[Tensor]:
    """Compute the same in float64 by autograd, from the kernels' inputs."""
    student, teacher, channel = (None if x is None else x.detach().double().requires_grad_() for x in inputs)
    parameter, scale = PARAMETER[case.kind], case.scalars[2]
    wide = None if channel is None else channel.view(-1, *[1] * (student.dim() - 2))
    if case.kind == HINT:
        terms = (student - teacher).square()
    elif case.kind == AB:
        terms = (parameter - student * torch.where(teacher > 0, 1.0, -1.0)).clamp(min=0).square()
    elif case.kind == OH:
        target = torch.maximum(teacher, wide)
        terms = (student - target).square() * ((student > target) | (target > 0))
    else:
        variance = torch.nn.functional.softplus(wide) + parameter
        terms = 0.5 * ((student - teacher).square() / variance + variance.log())
    total = scale * terms.sum()
    leaves = [student, teacher, channel] if case.kind == VID else [student, teacher]
    grads = torch.autograd.grad(UPSTREAM * total, leaves, allow_unused=True)
    return [total.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


def run_case(case: Case) -> None:
    """Compare the kernels with float64, up to rounding. AssertionError where they differ."""
    inputs = case.inputs()
    accumulator = 1e-12 if case.dtype == torch.float64 else 2e-5
    stored = {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(case.dtype, accumulator)
    for name, ours, right in zip(
        ("total", "student", "teacher", "channel"), run_raw(case, inputs), oracle(case, inputs), strict=False
    ):
        tolerance = stored if name in ("student", "teacher") else 2 * accumulator
        atol = tolerance * float(right.abs().max()) + (1e-7 if ours.dtype == torch.float16 else accumulator * 1e-2)
        torch.testing.assert_close(
            ours.double(), right, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
DTYPES = (HALF, BRAIN, SINGLE, DOUBLE)

# Each line tests one path through the kernels: packs or single elements, runs or columns, one block or several.
CASES = [
    *(Case(kind, dtype=dtype) for kind in KINDS for dtype in DTYPES),
    *(Case(kind, (2, 3, 7, 9), dtype) for kind in KINDS for dtype in DTYPES),
    *(Case(kind, (2, 3, 8, 8), dtype, offset=1) for kind in KINDS for dtype in DTYPES),
    *(Case(kind, (3, 24, 3, 3), dtype, channels_last=True) for kind in KINDS for dtype in DTYPES),
    *(Case(kind, (3, 7, 3, 5), dtype, channels_last=True, offset=3) for kind in (OH, VID) for dtype in DTYPES),
    *(
        Case(kind, shape)
        for kind in KINDS
        for shape in ((1, 1), (1, 1, 1, 1), (5, 1), (4, 1, 9, 9), (1, 9), (2, 3, 40))
    ),
    *(Case(kind, (40, 6, 20, 20), dtype) for kind in (HINT, VID) for dtype in (HALF, SINGLE)),
    *(Case(kind, (30, 8, 15, 15), SINGLE, channels_last=last) for kind in (OH, VID) for last in (False, True)),
    *(Case(VID, (2, channels), dtype) for channels in (257, 1100, 2052) for dtype in (HALF, SINGLE)),
    Case(VID, (300, 64)),
    Case(VID, (300, 70)),
    Case(VID, (30, 20, 2, 2)),
]
