"""Pairing of student and teacher stages for a method, also if the networks have different numbers of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sftn_fast.models.staged import Shape


@dataclass(frozen=True)
class StagePair:
    """Two matching stages of student and teacher. Stages count from 1."""

    student_stage: int
    student_shape: Shape
    """Output of that stage (C, H, W)."""
    teacher_stage: int
    teacher_shape: Shape
    """Output of that stage (C', H', W')."""

    def __str__(self) -> str:
        student, teacher = ("x".join(map(str, shape)) for shape in (self.student_shape, self.teacher_shape))
        return f"student stage {self.student_stage} {student} with teacher stage {self.teacher_stage} {teacher}"


def pair_stages(student: Sequence[Shape], teacher: Sequence[Shape]) -> tuple[StagePair, ...]:
    """Pair the stages of the same resolution, each stage at most once.

    The number of pairs is that of the stages of the shallower network. The pairs keep the networks' order, and the last
    stages pair with each other. Of the remaining choices the best one has (1) the smallest difference of the maps'
    sizes, in halvings summed over the pairs, (2) the smallest difference of the relative depths, (3) the earliest
    stages. With equal numbers of stages, stage i therefore pairs with stage i.

    :func:`sftn_fast.sftn.branch_entries` instead finds a student stage for every teacher stage.

    Args:
        student: (C, H, W) of the output of each student stage.
        teacher: (C', H', W') of the output of each teacher stage.
    """
    count = min(len(student), len(teacher))
    choices = itertools.product(_choices(len(student), count), _choices(len(teacher), count))

    def mismatch(choice: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[float, float]:
        pairs = list(zip(*choice, strict=True))
        sizes = (math.log2(student[s - 1][1] / teacher[t - 1][1]) for s, t in pairs)
        depths = (s / len(student) - t / len(teacher) for s, t in pairs)
        # Rounded, so that the order of the terms can't make equal sums differ.
        return round(sum(map(abs, sizes)), 6), round(sum(map(abs, depths)), 6)

    best = zip(*min(choices, key=mismatch), strict=True)
    return tuple(StagePair(s, student[s - 1], t, teacher[t - 1]) for s, t in best)


def _choices(stages: int, count: int) -> list[tuple[int, ...]]:
    """Return all ways to choose ``count`` of the stages in order, always with the last one."""
    return [(*inner, stages) for inner in itertools.combinations(range(1, stages), count - 1)]
