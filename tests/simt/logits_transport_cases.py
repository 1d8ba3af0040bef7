"""Cases of WKD's raw ops on the emulated device, and their float64 oracle. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EPS, GAMMA, GIVEN = 1e-8, 2.5, 1.7
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ROUNDING = {HALF: 1e-3, BRAIN: 8e-3, SINGLE: 1e-5, DOUBLE: 1e-11}


@dataclass(frozen=True)
class Case:
    """One call of each op. ``pad`` columns stand between the logits' rows; ``dead`` classes are impossible."""

    rows: int = 5
    classes: int = 10
    dtype: torch.dtype = SINGLE
    temperature: float = 2.0
    pad: int = 0
    dead: bool = False
    student_grad: bool = True
    teacher_grad: bool = True

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    def logits(self, generator: torch.Generator) -> Tensor:
        wide = torch.full((self.rows, self.classes + self.pad), torch.nan, dtype=self.dtype)
        values = 3 * torch.randn(self.rows, self.classes, generator=generator, dtype=DOUBLE)
        if self.dead:
            values[:, 1::3] = -torch.inf
            values[0, 1:] = -torch.inf  # all classes but the target
        return wide[:, : self.classes].copy_(values)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.classes)
        target = torch.randint(self.classes, (self.rows,), generator=generator)
        if self.dead:
            target = target // 3 * 3
            target[0] = 0
        return self.logits(generator), self.logits(generator), target

    def matrices(self, count: int) -> list[Tensor]:
        """Return dense positive ``[N, C]`` of the accumulator's dtype, values of the iterations."""
        generator = torch.Generator().manual_seed(1)
        dtype = DOUBLE if self.dtype == DOUBLE else SINGLE
        drawn = torch.rand(count, self.rows, self.classes, generator=generator, dtype=DOUBLE) + 0.01
        return list(drawn.to(dtype))


def marginal(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    is_target = torch.nn.functional.one_hot(target, logits.shape[1]).bool()
    others = logits.masked_fill(is_target, -torch.inf)
    impossible = (others == -torch.inf).all(1, keepdim=True)
    return (others.masked_fill(impossible, 0.0) / temperature).softmax(1).masked_fill(impossible, 0.0)


def assert_near(actual: Tensor, right: Tensor, tolerance: float) -> None:
    atol = tolerance * float(right.detach()[right.isfinite()].abs().max()) + 1e-12
    torch.testing.assert_close(actual.double(), right.detach(), rtol=0, atol=atol)


def check_iteration(case: Case, rows: Tensor) -> list[Tensor]:
    """Compare the ops between the matrix products."""
    ops, tolerance = torch.ops.sftn_fast_emulated, 1e-12 if case.dtype == DOUBLE else 2e-6
    first, second, third, fourth = case.matrices(4)
    first[:, 0] = 0  # a class without probability
    step = ops.wkd_step(first, second)
    assert_near(step, first.double() / (second.double() + EPS), tolerance)
    loss = ops.wkd_loss(second, third, rows, GAMMA)
    weighted = rows.double().prod(1).masked_fill(rows[:, 0] == 0, 0.0)
    assert_near(loss, (weighted.sum() + GAMMA * (second.double() * third.double()).sum()) / case.rows, 10 * tolerance)
    outcomes = [step, loss]
    for before in (None, fourth):
        grad, total = ops.wkd_reverse(first, step, third, before)
        along = third.double() * step.double()
        assert_near(total, along + (0 if before is None else before.double()), tolerance)
        assert_near(grad, -along / (second.double() + EPS), 2 * tolerance)
        outcomes += [grad, total]
    return outcomes


def run_case(case: Case) -> list[Tensor]:
    """Compare the kernels with float64. AssertionError where they differ."""
    student, teacher, target = case.inputs()
    ops, single = torch.ops.sftn_fast_emulated, 1e-11 if case.dtype == DOUBLE else 1e-5
    source, sink, rows = ops.wkd_marginals(student, teacher, target, case.temperature)
    leaves = [x.double().requires_grad_() for x in (student, teacher)]
    right_marginals = [marginal(x, target, case.temperature) for x in leaves]
    p_s, p_t = (x.softmax(1).gather(1, target[:, None]).squeeze(1) for x in leaves)
    for actual, right in zip((source, sink), right_marginals, strict=True):
        assert_near(actual, right, single)
    assert_near(rows, torch.stack([p_t, -p_s.log()], 1), single)

    sums, wanted = case.matrices(2), (case.student_grad, case.teacher_grad)
    # The derivative of the transport along a marginal, of which the ops get the product with the marginal.
    along = [x.double() * m.detach() for x, m in zip(sums, right_marginals, strict=True)]
    transport = sum((x.double() * m).sum() for x, m in zip(sums, right_marginals, strict=True))
    right_total = GIVEN * (-(p_t * p_s.log()).sum() + GAMMA * transport) / case.rows
    right_grads = torch.autograd.grad(right_total, leaves)
    given = torch.tensor(GIVEN, dtype=source.dtype)
    grads = ops.wkd_gradient(
        given,
        student,
        teacher,
        target,
        source,
        sink,
        rows,
        *(x.to(source.dtype) for x in along),
        case.temperature,
        GAMMA,
        *wanted,
    )
    expected = [grad for grad, asked in zip(right_grads, wanted, strict=True) if asked]
    for grad, right_grad in zip(grads, expected, strict=True):
        assert_near(grad, right_grad, ROUNDING[case.dtype])
    return [source, sink, rows, *grads, *check_iteration(case, rows)]


CASES = [
    *(Case(dtype=dtype) for dtype in (HALF, BRAIN, SINGLE, DOUBLE)),
    *(Case(rows=rows, classes=classes) for rows, classes in ((1, 1), (3, 1), (1, 2), (9, 33), (40, 12))),
    *(Case(rows=2, classes=classes, dtype=dtype) for classes in (1024, 1030) for dtype in (SINGLE, HALF)),
    Case(rows=3, classes=1100, dtype=DOUBLE),
    Case(rows=17, classes=12, pad=3, temperature=1.0),
    Case(rows=6, classes=12, dead=True),
    Case(rows=6, classes=13, dead=True, dtype=DOUBLE),
    Case(student_grad=False),
    Case(teacher_grad=False),
]
