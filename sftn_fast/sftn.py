"""Student-aware training of a teacher, with branches made of the student on the teacher's stages.

A branch transforms the output of one teacher stage to the input shape of a student stage, and runs the rest of the
student on it. Teacher and branches train together (:func:`sftn_fast.ops.sftn_loss`), so that the teacher learns
features that the student can follow. Source: Park et al., "Learning Student-Friendly Teacher Networks for Knowledge
Distillation", NeurIPS 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from sftn_fast.config import check
from sftn_fast.distillers.network_checks import check_pair
from sftn_fast.models import StagedNet
from sftn_fast.models.copying import copy_network
from sftn_fast.models.staged import Shape, Tail


@dataclass(frozen=True)
class BranchEntry:
    """A teacher stage and the place in the student where its branch enters. ``print(entry)`` shows it in one line."""

    teacher_stage: int
    """Stage of the teacher that the branch starts from. Stages count from 1."""
    teacher_shape: Shape
    """Output of that stage (C, H, W)."""
    student_stage: int
    """Matching stage of the student; the branch runs the stages after it and the head."""
    student_shape: Shape
    """Output of that stage (C, H, W), which the transform reproduces."""
    into_head: bool
    """Whether the student stage is the last one; the branch is then the transform and the student's head."""

    @property
    def place(self) -> str:
        """Part of the student that the branch runs first."""
        return "student head" if self.into_head else f"student stage {self.student_stage + 1}"

    def __str__(self) -> str:
        source, target = (("x".join(map(str, shape))) for shape in (self.teacher_shape, self.student_shape))
        layers = _describe_transform(self.teacher_shape, self.student_shape)
        return f"teacher stage {self.teacher_stage} {source} -> {layers} -> {self.place} input {target}"


def branch_entries(student: StagedNet, teacher: StagedNet, image_size: int) -> list[BranchEntry]:
    """Choose for each teacher stage the student stage after which its branch enters.

    The last stages pair with each other. The stages before them pair in order, by these criteria: (1) as many different
    student stages as possible, (2) the smallest difference of the maps' sizes, in halvings summed over the pairs,
    (3) the smallest difference of the relative depths t / S_teacher and s / S_student, (4) the earliest student stages.
    With equal numbers of stages, stage i therefore pairs with stage i, whatever the sizes.

    A student stage may serve several branches; :func:`sftn_fast.distillers.pairing.pair_stages` uses each at most once.

    Args:
        student: Network with S_student stages, two or more unless the teacher has just one.
        teacher: Network with S_teacher stages.
        image_size: Side of the images in pixels.

    Returns:
        S_teacher entries, in the teacher's order.

    Raises:
        ValueError: The student has no stage left for a branch to run.
    """
    teacher_shapes, student_shapes = teacher.feature_shapes(image_size), student.feature_shapes(image_size)
    inner, last = range(1, len(teacher_shapes)), len(student_shapes)
    if inner and last < 2:
        raise ValueError(f"{student.name or 'the student'} has 1 stage; a branch needs a student of 2 or more")

    def mismatch(choice: tuple[int, ...]) -> tuple[int, float, float]:
        halvings = (_halvings(teacher_shapes[t - 1], student_shapes[s - 1]) for t, s in zip(inner, choice, strict=True))
        depths = (t / len(teacher_shapes) - s / last for t, s in zip(inner, choice, strict=True))
        # Rounded, so that the order of the terms can't make equal sums differ.
        return -len(set(choice)), round(sum(map(abs, halvings)), 6), round(sum(map(abs, depths)), 6)

    # At most C(S_teacher + S_student - 3, S_teacher - 1) choices: 10 for four stages each.
    choices = itertools.combinations_with_replacement(range(1, last), len(inner))
    return [
        BranchEntry(t, teacher_shapes[t - 1], s, student_shapes[s - 1], into_head=s == last)
        for t, s in enumerate((*min(choices, key=mismatch), last), start=1)
    ]


class FeatureTransform(nn.Sequential):
    """Convolution, BatchNorm and ReLU from one map's shape to another's.

    3x3 convolutions of stride 2 halve the map, transposed 4x4 ones double it, as often as brings its size nearest to
    the wanted one. A 1x1 convolution keeps a size that is nearest already. Where the size still differs, adaptive
    average pooling closes the gap: one network may round 7 / 2 up and the other down.

    Args:
        in_shape: (C, H, W) of the input [N, C, H, W].
        out_shape: (C', H', W') of the output [N, C', H', W'].

    Raises:
        ValueError: A shape is not that of a map, or height and width need different factors.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        steps = _steps(in_shape, out_shape)
        channels, width = in_shape[0], out_shape[0]
        layers: list[nn.Module] = []
        for inputs in (channels, *[width] * (abs(steps) - 1)):
            layers += [_resizing_convolution(inputs, width, steps), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        if _size_after(in_shape, steps) != out_shape[1:]:
            layers.append(nn.AdaptiveAvgPool2d(out_shape[1:]))
        super().__init__(*layers)


class StudentAwareTeacher(nn.Module):
    """A teacher with student branches on its stages.

    In training mode ``forward(x)`` returns ``(logits, [branch logits])``, each [N, num_classes]. In evaluation mode it
    returns the teacher's logits and skips the branches. Pass a trained teacher to fine-tune it.

    Args:
        teacher: The network to train, registered as ``teacher``; export that.
        student: The network whose stages the branches copy. It is not trained itself.
        image_size: Side of the images in pixels.
        branch_stages: Teacher stages that carry a branch; None for all but the last. The branch of the last stage is
            the transform and the student's head.
        share_student: Use one copy of the student's stages for all branches; each keeps its own transform.
        entries: Where each teacher stage's branch enters the student; None for :func:`branch_entries`.

    Attributes:
        entries: Entries of the stages that carry a branch, in the order of the branch logits.

    Raises:
        ConfigError: ``branch_stages`` is empty, names a stage twice, or names one that the teacher does not have.
        ValueError: The networks differ in classes or channels, share a module, or an entry's shapes have no transform.
    """

    def __init__(
        self,
        teacher: StagedNet,
        student: StagedNet,
        *,
        image_size: int = 32,
        branch_stages: Sequence[int] | None = None,
        share_student: bool = False,
        entries: Sequence[BranchEntry] | None = None,
    ) -> None:
        super().__init__()
        check_pair("teacher", teacher, "student", student)
        known = {entry.teacher_stage: entry for entry in entries or branch_entries(student, teacher, image_size)}
        wanted = sorted(range(1, teacher.num_stages) if branch_stages is None else branch_stages)
        usable = 0 < len(wanted) == len(set(wanted)) and set(wanted) <= known.keys()
        check(usable, "sftn.branch_stages", wanted, f"distinct stages of the teacher, of {', '.join(map(str, known))}")

        self.entries = [known[stage] for stage in wanted]
        self.teacher = teacher
        shared = copy_network(student) if share_student else None
        self.branches = nn.ModuleDict({str(e.teacher_stage): _branch(e, student, shared) for e in self.entries})
        self.train()

    def describe(self) -> list[str]:
        """Return one line a branch: where it leaves the teacher, its transform, where it enters the student."""
        return [str(entry) for entry in self.entries]

    def earliest_branch(self) -> tuple[BranchEntry, dict[str, Tensor]]:
        """Return the branch that holds the most of the student, of several the one on the earliest teacher stage.

        Returns:
            Its entry, and the state of its stages and head by the names that they have in the student.
        """
        entry = min(self.entries, key=lambda each: (each.student_stage, each.teacher_stage))
        _, tail = cast(nn.Sequential, self.branches[str(entry.teacher_stage)])
        state = cast(Tail, tail).head.state_dict(prefix="head.")
        for number, stage in enumerate(cast(Tail, tail).stages, start=entry.student_stage):
            state |= stage.state_dict(prefix=f"stages.{number}.")
        return entry, state

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Return logits [N, num_classes] of images [N, in_channels, H, W], in training with those of the branches."""
        return self.forward_branches(x) if self.training else self.teacher(x)

    def forward_branches(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the teacher's logits [N, num_classes] and those of each branch, in either mode."""
        features = self.teacher.forward_features(x)
        branch_logits = [branch(features.stages[int(stage) - 1]) for stage, branch in self.branches.items()]
        return features.logits, branch_logits


def _branch(entry: BranchEntry, student: StagedNet, shared: StagedNet | None) -> nn.Sequential:
    """Return transform and tail of one branch; the tail uses the modules of ``shared`` if given, else copies."""
    first = entry.student_stage + 1
    tail = student.tail(first) if shared is None else Tail(list(shared.stages)[first - 1 :], shared.head)
    # The student may be frozen, but its copies have to learn.
    return nn.Sequential(FeatureTransform(entry.teacher_shape, entry.student_shape), tail.requires_grad_(True))


def _halvings(from_shape: Shape, to_shape: Shape) -> float:
    """Return the number of halvings from one map's height to the other's, not rounded; negative for doublings."""
    _check_maps(from_shape, to_shape)
    return math.log2(from_shape[1] / to_shape[1])


def _steps(in_shape: Shape, out_shape: Shape) -> int:
    """Return the number of halvings that brings ``in_shape`` nearest to ``out_shape``; negative for doublings."""
    _check_maps(in_shape, out_shape)
    height, width = (round(math.log2(in_shape[axis] / out_shape[axis])) for axis in (1, 2))
    if height != width:
        raise ValueError(f"no transform from {in_shape} to {out_shape}: height and width change by different factors")
    return height


def _check_maps(*shapes: Shape) -> None:
    if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        raise ValueError("no transform between " + " and ".join(map(str, shapes)) + ": not shapes (C, H, W) of maps")


def _size_after(shape: Shape, steps: int) -> tuple[int, int]:
    """Return height and width after ``steps`` halvings, which round up, or ``-steps`` doublings."""
    _, height, width = shape
    if steps <= 0:
        return height << -steps, width << -steps
    return math.ceil(height / 2**steps), math.ceil(width / 2**steps)


def _resizing_convolution(inputs: int, outputs: int, steps: int) -> nn.Module:
    """Return a layer that halves (``steps`` > 0), doubles (< 0) or keeps a map's size, for a BatchNorm after it."""
    if steps > 0:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    if steps < 0:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _describe_transform(in_shape: Shape, out_shape: Shape) -> str:
    """Describe the layers of a :class:`FeatureTransform`, as in ``3x3/2, 3x3/2, pool``."""
    steps = _steps(in_shape, out_shape)
    layers = ["3x3/2"] * steps or ["4x4*2"] * -steps or ["1x1"]
    return ", ".join(layers + ["pool"] * (_size_after(in_shape, steps) != out_shape[1:]))
