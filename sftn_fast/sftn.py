"""Student-aware training of a teacher: branches made of the student hang on the teacher's stages.

A branch takes the output of one teacher stage, transforms it to the shape that a stage of the student takes, and runs
the rest of the student on it. Trained together (:func:`sftn_fast.ops.sftn_loss`), the teacher learns features that the
student can follow. Source: Park et al., "Learning Student-Friendly Teacher Networks for Knowledge Distillation",
NeurIPS 2021.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sftn_fast.config import check
from sftn_fast.distillers.networks import check_pair
from sftn_fast.models import StagedNet
from sftn_fast.models.copying import copy_network
from sftn_fast.models.staged import Shape, Tail


@dataclass(frozen=True)
class Pair:
    """A teacher stage and the place in the student where its branch enters. ``print(pair)`` says it in one line."""

    teacher_stage: int
    teacher_shape: Shape
    """Output of that stage (C, H, W)."""
    student_stage: int
    """Stage of the student that stands at the same place; the branch runs the stages after it and the head."""
    student_shape: Shape
    """Output of that stage, which the branch's first module takes (C, H, W)."""
    into_head: bool
    """The student stage is the last one, so that the branch is a transform and the student's head."""

    def __str__(self) -> str:
        entry = "student head" if self.into_head else f"student stage {self.student_stage + 1}"
        source, target = (("x".join(map(str, shape))) for shape in (self.teacher_shape, self.student_shape))
        layers = _describe_transform(self.teacher_shape, self.student_shape)
        return f"teacher stage {self.teacher_stage} {source} -> {layers} -> {entry} input {target}"


def pair_stages(teacher: StagedNet, student: StagedNet, image_size: int) -> list[Pair]:
    """Say for each teacher stage which student stage stands at the same place.

    The last stages pair with each other. The stages before them pair in order, such that (1) as many different student
    stages as possible serve, (2) the maps' sizes differ least, in halvings summed over the pairs, (3) the relative
    depths t / S_teacher and s / S_student differ least, (4) the student stages are the earliest. With equal numbers of
    stages, stage i therefore pairs with stage i, whatever the sizes.

    Args:
        teacher: Network with S_teacher stages.
        student: Network with S_student stages, two or more unless the teacher has just one.
        image_size: Side of the images in pixels.

    Returns:
        S_teacher pairs, in the teacher's order.

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
        # Rounded, lest equal sums differ by the order of their terms.
        return -len(set(choice)), round(sum(map(abs, halvings)), 6), round(sum(map(abs, depths)), 6)

    # At most C(S_teacher + S_student - 3, S_teacher - 1) choices: 10 for four stages each.
    choices = itertools.combinations_with_replacement(range(1, last), len(inner))
    return [
        Pair(t, teacher_shapes[t - 1], s, student_shapes[s - 1], into_head=s == last)
        for t, s in enumerate((*min(choices, key=mismatch), last), start=1)
    ]


class FeatureTransform(nn.Sequential):
    """Convolution, BatchNorm and ReLU from one map's shape to another's.

    The map is halved by 3x3 convolutions of stride 2 or doubled by transposed 4x4 ones, as often as brings its size
    nearest to the wanted one; a 1x1 convolution serves where that is not at all. Where the wanted size is then not met,
    as between a network that rounds 7 / 2 up and one that rounds it down, adaptive average pooling closes the gap.

    Args:
        in_shape: (C, H, W) of the input [N, C, H, W].
        out_shape: (C', H', W') of the output [N, C', H', W'].

    Raises:
        ValueError: A shape is not that of a map, or height and width would have to change by different factors.
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

    Training, ``forward(x)`` gives ``(logits, [branch logits])``, each [N, num_classes]; in evaluation it gives the
    teacher's logits, and the branches cost nothing. A teacher that is trained already is thereby fine-tuned.

    Args:
        teacher: The network to train, registered as ``teacher``; export that.
        student: The network to be friendly to. It is copied from, never trained.
        image_size: Side of the images in pixels.
        stages: Teacher stages that carry a branch; None for all but the last. The last one's is the transform and the
            student's head.
        share_student: One copy of the student's stages serves all branches, each of which keeps its own transform.
        pairing: Which student stage stands beside each teacher stage; None for :func:`pair_stages`.

    Attributes:
        pairs: The pairs that carry a branch, in the order of the branch logits.

    Raises:
        ConfigError: ``stages`` names a stage that the teacher doesn't have, twice the same, or none.
        ValueError: The networks differ in their classes or channels, share a module, or no transform leads from one
            shape of a pair to the other.
    """

    def __init__(
        self,
        teacher: StagedNet,
        student: StagedNet,
        *,
        image_size: int = 32,
        stages: Sequence[int] | None = None,
        share_student: bool = False,
        pairing: Sequence[Pair] | None = None,
    ) -> None:
        super().__init__()
        check_pair("teacher", teacher, "student", student)
        paired = {pair.teacher_stage: pair for pair in pairing or pair_stages(teacher, student, image_size)}
        wanted = sorted(range(1, teacher.num_stages) if stages is None else stages)
        usable = 0 < len(wanted) == len(set(wanted)) and set(wanted) <= paired.keys()
        check(usable, "sftn.branch_stages", wanted, f"distinct stages of the teacher, of {', '.join(map(str, paired))}")

        self.pairs = [paired[stage] for stage in wanted]
        self.teacher = teacher
        shared = copy_network(student) if share_student else None
        self.branches = nn.ModuleDict({str(pair.teacher_stage): _branch(pair, student, shared) for pair in self.pairs})
        self.train()

    def describe(self) -> list[str]:
        """One line a branch: where it leaves the teacher, its transform, where it enters the student."""
        return [str(pair) for pair in self.pairs]

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Logits [N, num_classes] of images [N, in_channels, H, W]; in training with the branches' logits beside."""
        return self.forward_branches(x) if self.training else self.teacher(x)

    def forward_branches(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Teacher logits [N, num_classes] and those of each branch, whatever the mode."""
        features = self.teacher.forward_features(x)
        branch_logits = [branch(features.stages[int(stage) - 1]) for stage, branch in self.branches.items()]
        return features.logits, branch_logits


def _branch(pair: Pair, student: StagedNet, shared: StagedNet | None) -> nn.Sequential:
    """Transform and tail of one pair; the tail is made of the modules of ``shared`` if there is one, else of copies."""
    entry = pair.student_stage + 1
    tail = student.tail(entry) if shared is None else Tail(list(shared.stages)[entry - 1 :], shared.head)
    # A student may come frozen; its copies are here to learn.
    return nn.Sequential(FeatureTransform(pair.teacher_shape, pair.student_shape), tail.requires_grad_(True))


def _halvings(from_shape: Shape, to_shape: Shape) -> float:
    """How often a map is halved on the way from one height to the other; negative where it is doubled."""
    _check_maps(from_shape, to_shape)
    return math.log2(from_shape[1] / to_shape[1])


def _steps(in_shape: Shape, out_shape: Shape) -> int:
    """Number of halvings that brings ``in_shape`` nearest to ``out_shape``; negative for doublings."""
    _check_maps(in_shape, out_shape)
    height, width = (round(math.log2(in_shape[axis] / out_shape[axis])) for axis in (1, 2))
    if height != width:
        raise ValueError(f"no transform from {in_shape} to {out_shape}: height and width change by different factors")
    return height


def _check_maps(*shapes: Shape) -> None:
    if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        raise ValueError("no transform between " + " and ".join(map(str, shapes)) + ": not shapes (C, H, W) of maps")


def _size_after(shape: Shape, steps: int) -> tuple[int, int]:
    """Height and width after so many halvings, which round up, or doublings."""
    _, height, width = shape
    if steps <= 0:
        return height << -steps, width << -steps
    return math.ceil(height / 2**steps), math.ceil(width / 2**steps)


def _resizing_convolution(inputs: int, outputs: int, steps: int) -> nn.Module:
    """A layer that halves (``steps`` > 0), doubles (< 0) or keeps the map's size. BatchNorm follows, hence no bias."""
    if steps > 0:
        return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
    if steps < 0:
        return nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=False)
    return nn.Conv2d(inputs, outputs, 1, bias=False)


def _describe_transform(in_shape: Shape, out_shape: Shape) -> str:
    """The layers of a :class:`FeatureTransform`, as in ``3x3/2, 3x3/2, pool``."""
    steps = _steps(in_shape, out_shape)
    layers = ["3x3/2"] * steps or ["4x4*2"] * -steps or ["1x1"]
    return ", ".join(layers + ["pool"] * (_size_after(in_shape, steps) != out_shape[1:]))
