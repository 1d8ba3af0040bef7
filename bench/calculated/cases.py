"""The calculated calls: losses at sizes, each with the bytes of memory that it touches, and its goal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calculated.h200 import DRAM
from sftn_fast import ops

Build = Callable[[], "Call"]
MAPS = (64, 256, 8, 8)


@dataclass(frozen=True)
class Call:
    """A call on tensors of the full size. ``distinct_bytes`` counts each byte once, however often it is read."""

    run: Callable[[], Tensor]
    distinct_bytes: float
    values: int  # of the inputs: "elements" in the table


@dataclass(frozen=True)
class Case:
    name: str
    build: Build
    goal: float | None = None  # microseconds
    whole: bool = False  # every block runs, because later launches depend on what each has written


def call_on(inputs: Iterable[Tensor], run: Callable[[], Any]) -> Call:
    """Return a call that reads ``inputs`` and writes the gradients of those that want one."""
    tensors = list(inputs)

    def total() -> Tensor:
        result = run()
        return result if isinstance(result, Tensor) else result.total

    written = sum(x.nbytes for x in tensors if x.requires_grad)
    return Call(total, sum(x.nbytes for x in tensors) + written, sum(x.numel() for x in tensors))


def normal(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(math.prod(shape))).requires_grad_(grad)


def on_logits(loss: Callable[..., Any], n: int, c: int) -> Call:
    student, teacher, target = 3 * normal(n, c), 3 * normal(n + 1, c)[1:], torch.arange(n) % c
    student.requires_grad_()
    return call_on([student, teacher, target], lambda: loss(student, teacher, target))


def kd_ce(n: int, c: int) -> Call:
    return on_logits(ops.kd_ce_loss, n, c)


def js(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
    return ops.divergence_loss(student, teacher, kind="jsd", beta=0.5)


LSKD = partial(ops.kd_ce_loss, standardize=True)


def sftn(n: int, c: int, branches: int = 3) -> Call:
    teacher, *students = (x.clone().requires_grad_() for x in normal(1 + branches, n, c))
    target = torch.arange(n) % c
    return call_on([teacher, *students, target], lambda: ops.sftn_loss(teacher, students, target))


BATCH, NEGATIVES, DIM = 64, 16384, 128


def crd(num_samples: int, classes: int, *, sampler: bool) -> Call:
    embeddings = [F.normalize(normal(BATCH, DIM + side)[:, side:]).requires_grad_() for side in range(2)]
    memory = ops.CRDMemory(num_samples, DIM)
    memory.z_student.fill_(500.0)  # as after the first batch
    memory.z_teacher.fill_(300.0)
    index = torch.arange(BATCH) * (num_samples // BATCH)
    labels = torch.arange(num_samples) % classes
    step = num_samples // NEGATIVES  # ascending, as from the sampler
    draws = torch.randint(step, (BATCH, NEGATIVES), generator=torch.Generator().manual_seed(0))
    negatives = (torch.arange(NEGATIVES) * step + draws).int()

    def run() -> Tensor:
        if sampler:
            ops.sample_negatives(index, labels, NEGATIVES, dtype=torch.int32)
        return ops.crd_loss(*embeddings, index, negatives, memory)

    rows = num_samples * -math.expm1(-BATCH * NEGATIVES / num_samples)  # expected number of different ones
    touched = 2 * rows * 4 * DIM + negatives.nbytes + (labels.nbytes if sampler else 0)
    return Call(run, touched, 2 * BATCH * NEGATIVES * DIM)


def negatives(num_samples: int, classes: int) -> Call:
    index, labels = torch.arange(BATCH) * (num_samples // BATCH), torch.arange(num_samples) % classes
    written = BATCH * NEGATIVES

    def run() -> Tensor:
        return ops.sample_negatives(index, labels, NEGATIVES, dtype=torch.int32)

    return Call(run, labels.nbytes + 4 * written, written)


def on_pair(loss: Callable[..., Any], *shape: int) -> Call:
    """Return a call of a loss on a student's and a teacher's tensor of one shape."""
    student, teacher = normal(*shape).relu().requires_grad_(), normal(*shape).relu()
    return call_on([student, teacher], lambda: loss(student, teacher))


def oh(*shape: int) -> Call:
    student, teacher, margin = normal(*shape, grad=True), normal(*shape), torch.full((shape[1],), -0.5)
    return call_on([student, teacher, margin], lambda: ops.oh_loss(student, teacher, margin))


def vid(*shape: int) -> Call:
    mean, teacher, scale = normal(*shape, grad=True), normal(*shape), torch.zeros(shape[1], requires_grad=True)
    return call_on([mean, scale, teacher], lambda: ops.vid_loss(mean, scale, teacher))


def adapted_hint(*shape: int) -> Call:
    features, teacher = normal(*shape, grad=True), normal(*shape)
    affine = torch.ones(shape[1], requires_grad=True), torch.zeros(shape[1], requires_grad=True)
    running = torch.zeros(shape[1]), torch.ones(shape[1])
    return call_on(
        [features, teacher, *affine, *running], lambda: ops.adapted_hint_loss(features, teacher, *affine, *running)
    )


def _of_bytes(num_bytes: float) -> float:
    """Return the goal of the large logits: 1.3 times the time that their bytes take."""
    return 1.3 * 1e6 * num_bytes / DRAM


LARGE = (8192, 1000)
CASES = [
    Case("KD + CE (64, 100)", partial(kd_ce, 64, 100)),
    Case("KD + CE (256, 1000)", partial(kd_ce, 256, 1000)),
    Case("KD + CE (8192, 1000)", partial(kd_ce, *LARGE), _of_bytes(5 * 4 * math.prod(LARGE))),
    Case("DKD (64, 100)", partial(on_logits, ops.dkd_loss, 64, 100)),
    Case("DKD (256, 1000)", partial(on_logits, ops.dkd_loss, 256, 1000)),
    Case("DKD (8192, 1000)", partial(on_logits, ops.dkd_loss, *LARGE), _of_bytes(5 * 4 * math.prod(LARGE))),
    Case("LSKD + CE (256, 1000)", partial(on_logits, LSKD, 256, 1000)),
    Case("JS divergence (256, 1000)", partial(on_logits, js, 256, 1000)),
    Case("SFTN, 3 branches (64, 100)", partial(sftn, 64, 100)),
    Case("SFTN, 3 branches (256, 1000)", partial(sftn, 256, 1000)),
    Case("CRD, N 50,000", partial(crd, 50_000, 100, sampler=False), 120),
    Case("CRD and its negatives, N 50,000", partial(crd, 50_000, 100, sampler=True)),
    Case("CRD, N 1,281,167", partial(crd, 1_281_167, 1000, sampler=False)),
    Case("negatives, 64 x 16384 of 50,000", partial(negatives, 50_000, 100)),
    Case("negatives, 64 x 16384 of 1,281,167", partial(negatives, 1_281_167, 1000), 40, whole=True),
    Case("RKD (64, 128)", partial(on_pair, ops.rkd_loss, 64, 128)),
    Case("RKD (256, 128)", partial(on_pair, ops.rkd_loss, 256, 128), 45),
    Case("SP (256, 512, 7, 7)", partial(on_pair, ops.sp_loss, 256, 512, 7, 7)),
    Case("PKT (256, 512)", partial(on_pair, ops.pkt_loss, 256, 512)),
    Case("hint (64, 256, 8, 8)", partial(on_pair, ops.hint_loss, *MAPS)),
    Case("AB (64, 256, 8, 8)", partial(on_pair, ops.ab_loss, *MAPS)),
    Case("OH (64, 256, 8, 8)", partial(oh, *MAPS)),
    Case("AT (64, 256, 8, 8)", partial(on_pair, ops.at_loss, *MAPS)),
    Case("FT (64, 256, 8, 8)", partial(on_pair, ops.ft_loss, *MAPS)),
    Case("VID (64, 256, 8, 8)", partial(vid, *MAPS)),
    Case("BatchNorm + ReLU + MSE (64, 256, 8, 8)", partial(adapted_hint, *MAPS)),
]
