"""Which stages of teacher and student a method compares, where the networks may have different numbers of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sftn_fast.models.staged import Shape


@dataclass(frozen=True)
class StagePair:
    """Two stages that stand at the same place of their networks. Stages count from 1."""

    student_stage: int
    student_shape: Shape
    """Output of that stage (C, H, W)."""
    teacher_stage: int
    teacher_shape: Shape

    def __str__(self) -> str:
        student, teacher = ("x".join(map(str, shape)) for shape in (self.student_shape, self.teacher_shape))
        return f"student stage {self.student_stage} {student} with teacher stage {self.teacher_stage} {teacher}"


def pair_stages(student: Sequence[Shape], teacher: Sequence[Shape]) -> tuple[StagePair, ...]:
    """Pair the stages whose outputs have these shapes, each stage at most once.

    There are as many pairs as the network with fewer stages has. The pairs keep the networks' order and the last stages
    pair with each other; among what is left to choose, the maps' sizes differ least, in halvings summed over the pairs,
    then the relative depths, then the earlier stages win. With equal numbers of stages, stage i pairs with stage i.
    """
    count = min(len(student), len(teacher))
    choices = itertools.product(_choices(len(student), count), _choices(len(teacher), count))

    def mismatch(choice: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[float, float]:
        pairs = list(zip(*choice, strict=True))
        sizes = (math.log2(student[s - 1][1] / teacher[t - 1][1]) for s, t in pairs)
        depths = (s / len(student) - t / len(teacher) for s, t in pairs)
        # Rounded, lest equal sums differ by the order of their terms.
        return round(sum(map(abs, sizes)), 6), round(sum(map(abs, depths)), 6)

    best = zip(*min(choices, key=mismatch), strict=True)
    return tuple(StagePair(s, student[s - 1], t, teacher[t - 1]) for s, t in best)


def _choices(stages: int, count: int) -> list[tuple[int, ...]]:
    """The ways to choose ``count`` of the stages in order, the last one always."""
    return [(*inner, stages) for inner in itertools.combinations(range(1, stages), count - 1)]
