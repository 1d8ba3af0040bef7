"""Cases of the divergences' raw ops on the emulated device, and their float64 oracle. Imports no kernels."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

IGNORE, ALPHA, BETA = -100, 0.3, 0.7
HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
ROUNDING = {HALF: 1e-3, BRAIN: 8e-3, SINGLE: 2e-5, DOUBLE: 1e-10}


class Divergence(IntEnum):
    KL, CROSS_ENTROPY, AB, JSD, TVD, REVERSE_KL, SKEW_KL, SKEW_REVERSE_KL = range(8)


class Kept(IntEnum):
    ALL, OTHERS, BELOW = range(3)


class Label(IntEnum):
    NONE, KL, TOP_KL, CROSS_ENTROPY, HARD_CROSS_ENTROPY = range(5)


class Options(NamedTuple):
    """Scalars of the raw ops, in the schemas' order."""

    divergence: int = Divergence.KL
    kept: int = Kept.ALL
    label: int = Label.NONE
    student_temperature: float = 2.0
    teacher_temperature: float = 2.0
    label_temperature: float = 1.0
    alpha: float = ALPHA
    beta: float = BETA
    weight: float = 1.5
    scale: float = 1.0
    label_weight: float = 0.5
    label_scale: float = 1.0
    standardize: bool = False
    weighted: bool = False
    rows: bool = False
    ignore_index: int = IGNORE


OTHERS = Options(kept=Kept.OTHERS)
LOSSES = {
    "kl": Options(),
    "ab": Options(Divergence.AB),
    "jsd": Options(Divergence.JSD),
    "jsd rows": Options(Divergence.JSD, rows=True),
    "tvd": Options(Divergence.TVD),
    "reverse_kl": Options(Divergence.REVERSE_KL),
    "skew_kl": Options(Divergence.SKEW_KL),
    "skew_reverse_kl": Options(Divergence.SKEW_REVERSE_KL),
    "wttm": Options(student_temperature=1.0, teacher_temperature=5.0, weighted=True),
    "dkd": OTHERS._replace(label=Label.KL, label_temperature=2.0),
    "dkd apart": OTHERS._replace(label=Label.KL, label_temperature=3.0),
    "dkd standardized": OTHERS._replace(label=Label.KL, label_temperature=2.0, standardize=True),
    "nkd": OTHERS._replace(divergence=Divergence.CROSS_ENTROPY, label=Label.CROSS_ENTROPY),
    "rld": Options(kept=Kept.BELOW, label=Label.TOP_KL, label_temperature=3.0),
    "lskd": Options(label=Label.HARD_CROSS_ENTROPY, standardize=True),
}


@dataclass(frozen=True)
class Case:
    """One call. ``pad`` columns stand between rows, ``offset`` elements before the first one: both spoil alignment."""

    loss: str = "dkd"
    rows: int = 5
    classes: int = 10
    dtype: torch.dtype = SINGLE
    pad: int = 0
    offset: int = 0
    near: float = 0.0  # how far the student is from the teacher, if not 0
    dead: bool = False  # classes that both rule out

    def __str__(self) -> str:
        default = Case()
        named = {k: v for k, v in vars(self).items() if v != getattr(default, k)}
        return ",".join(f"{k}={str(v).removeprefix('torch.')}" for k, v in named.items()) or "default"

    @property
    def options(self) -> Options:
        return LOSSES[self.loss]._replace(scale=1 / self.rows, label_scale=2 / self.rows)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits of student and teacher, inside a larger allocation if padded or offset, and classes."""
        generator = torch.Generator().manual_seed(self.rows * 1000 + self.classes)
        shape, step, sides = (self.rows, self.classes), self.classes + self.pad, []
        student, teacher = (3 * torch.randn(shape, generator=generator, dtype=DOUBLE) for _ in range(2))
        for values in (teacher + self.near * student if self.near else student, teacher):
            if self.dead:
                values[:, 1::3] = -torch.inf
            flat = torch.full((self.offset + self.rows * step,), torch.nan, dtype=self.dtype)
            sides.append(flat[self.offset :].view(self.rows, step)[:, : self.classes].copy_(values))
        target = torch.randint(self.classes, (self.rows,), generator=generator)
        if self.dead:
            target = target // 3 * 3
        if self.options.label == Label.HARD_CROSS_ENTROPY:
            target[1::3] = IGNORE
        return sides[0], sides[1], target


def divergence(case: Case, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Return the weighted divergence of each row, ``[N]``."""
    options, a, b = case.options, ALPHA, BETA
    of_target = teacher.gather(1, target[:, None])
    kept = [
        torch.ones_like(teacher, dtype=torch.bool),
        torch.arange(case.classes) != target[:, None],
        teacher < of_target,
    ][options.kept]
    kept = kept & (teacher > -torch.inf)
    some = kept.any(1, keepdim=True)
    kept = kept | ~some  # rows without a class count for nothing in the end
    p_log = (teacher / options.teacher_temperature).masked_fill(~kept, -torch.inf).log_softmax(1).masked_fill(~kept, 0)
    q_log = (student / options.student_temperature).masked_fill(~kept, -torch.inf).log_softmax(1).masked_fill(~kept, 0)
    p, q = (torch.where(kept, x.exp(), 0.0) for x in (p_log, q_log))

    def to_mixture(of: Tensor, of_log: Tensor, share: float, other: Tensor) -> Tensor:
        return of * (of_log - torch.where(kept, share * of + (1 - share) * other, 1.0).log())

    terms = {
        Divergence.KL: lambda: p * (p_log - q_log),
        Divergence.CROSS_ENTROPY: lambda: -p * q_log,
        Divergence.AB: lambda: -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b),
        Divergence.JSD: lambda: b * to_mixture(p, p_log, b, q) + (1 - b) * to_mixture(q, q_log, 1 - b, p),
        Divergence.TVD: lambda: (p - q).abs() / 2,
        Divergence.REVERSE_KL: lambda: q * (q_log - p_log),
        Divergence.SKEW_KL: lambda: to_mixture(p, p_log, a, q),
        Divergence.SKEW_REVERSE_KL: lambda: to_mixture(q, q_log, a, p),
    }
    rows = torch.where(kept & some, terms[Divergence(options.divergence)](), 0.0).sum(1)
    if options.weighted:
        rows = rows * (teacher.softmax(1) ** (1 / options.teacher_temperature)).sum(1)
    return options.weight * options.scale * rows


def binary_logs(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the probabilities of one class and of all others together, ``[N]`` each."""
    scaled = logits / temperature
    others = scaled.scatter(1, target[:, None], -torch.inf).logsumexp(1)
    of_class = scaled.gather(1, target[:, None]).squeeze(1)
    whole = scaled.logsumexp(1)
    return of_class - whole, others - whole


def label_term(case: Case, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Return the weighted sum of the label's terms, 0-dim."""
    options = case.options
    scale = options.label_weight * options.label_scale
    if options.label == Label.HARD_CROSS_ENTROPY:
        count = int((target != IGNORE).sum())
        summed = torch.nn.functional.cross_entropy(student, target, ignore_index=IGNORE, reduction="sum")
        return scale * summed * case.rows / max(count, 1)
    if options.label == Label.NONE or case.classes == 1:
        return student.new_zeros(())
    if options.label == Label.TOP_KL:
        top, place = teacher.max(1, keepdim=True)
        of_target = teacher.gather(1, target[:, None])
        teacher = teacher.scatter(1, place, of_target).scatter(1, target[:, None], top)
    s, s_others = binary_logs(student, target, options.label_temperature)
    t, t_others = binary_logs(teacher, target, options.label_temperature)
    if options.label == Label.CROSS_ENTROPY:
        return scale * (-t.exp() * s).sum()
    return scale * (t.exp() * (t - s) + t_others.exp() * (t_others - s_others)).sum()


def oracle(case: Case, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    pair = plain = [student, teacher]
    if case.options.standardize:
        pair = [(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7) for x in plain]
    rows = divergence(case, *pair, target.clamp(min=0))
    if case.options.rows:
        return rows
    hard = case.options.label == Label.HARD_CROSS_ENTROPY
    return rows.sum() + label_term(case, *(plain if hard else pair), target)


def run_case(case: Case) -> list[Tensor]:
    """Compare the kernels with float64. AssertionError where they differ."""
    student, teacher, target = case.inputs()
    options, ops = case.options, torch.ops.sftn_fast_emulated
    needed = target if options.kept != Kept.ALL or options.label != Label.NONE else None
    total, parts, numbers = ops.logits_divergence_forward(student, teacher, needed, *options)
    given = torch.linspace(0.5, 2.0, case.rows, dtype=DOUBLE) if options.rows else torch.tensor(1.7, dtype=DOUBLE)
    grad = ops.logits_divergence_backward(given.to(total.dtype), student, teacher, needed, parts, numbers, *options)
    leaf = student.double().requires_grad_()
    right = oracle(case, leaf, teacher.double(), target)
    (right_grad,) = torch.autograd.grad(right, leaf, given)
    single = 1e-10 if case.dtype == DOUBLE else 2e-5
    if case.near:
        single *= 100
    torch.testing.assert_close(total.double(), right.detach(), rtol=single, atol=1e-9)
    in_parts = options.label_weight * parts[0] + options.weight * parts[1]
    torch.testing.assert_close(in_parts, total.sum(), rtol=1e-5, atol=1e-9)
    atol = max(ROUNDING[case.dtype], single) * float(right_grad.abs().max()) + (1e-7 if case.dtype == HALF else 1e-12)
    torch.testing.assert_close(grad.double(), right_grad, rtol=0, atol=atol)
    return [total, parts, numbers, grad]


CASES = [
    *(Case(loss=loss, rows=9, classes=33) for loss in LOSSES),
    *(Case(dtype=dtype) for dtype in (HALF, BRAIN, DOUBLE)),
    *(Case(loss=loss, dtype=DOUBLE, rows=3, classes=140) for loss in ("ab", "jsd", "rld", "lskd", "nkd", "wttm")),
    *(Case(loss=loss, rows=2, classes=2090) for loss in ("dkd standardized", "dkd apart", "rld", "lskd", "jsd")),
    *(Case(loss=loss, rows=3, near=0.01, classes=40) for loss in ("dkd", "jsd", "skew_reverse_kl")),
    Case(loss="kl", rows=2, near=0.05, classes=300, dtype=DOUBLE),
    *(Case(rows=rows, classes=classes) for rows, classes in ((1, 1), (1, 2), (40, 12), (2, 256), (2, 257))),
    Case(loss="rld", rows=3, classes=600, dtype=HALF),
    Case(loss="nkd", rows=3, classes=1104, dtype=BRAIN, pad=8),
    Case(rows=17, classes=12, pad=3),
    Case(loss="lskd", rows=6, classes=12, pad=4, offset=1, dtype=HALF),
    *(Case(loss=loss, rows=6, classes=13, dead=True) for loss in ("dkd", "rld", "jsd", "nkd", "wttm")),
]
