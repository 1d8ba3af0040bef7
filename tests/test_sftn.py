"""Entries, transforms and branches of the student-aware teacher."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from models.networks import blank
from torch import Tensor, nn

from sftn_fast import models
from sftn_fast.config import ConfigError
from sftn_fast.models import StagedNet
from sftn_fast.models.staged import Head, Shape
from sftn_fast.sftn import BranchEntry, FeatureTransform, StudentAwareTeacher, branch_entries

# One network for each list of stage sizes in the zoo; test_families_cover_the_zoo checks that there are no others.
FAMILIES = ("resnet8", "resnet8x4", "wrn_16_2", "vgg8", "ResNet50", "MobileNetV2", "ShuffleV1", "ShuffleV2")
FAMILIES += ("resnet18", "shufflenet_v2_x0_5")
SIZES = (8, 9, 15, 28, 31, 32, 33, 47, 48, 64)


@torch.no_grad()
def shapes_of(net: StagedNet, size: int) -> list[Shape]:
    """Return the shapes of the stages' outputs, by a pass, which costs less than ``feature_shapes``."""
    return [tuple(stage.shape[1:]) for stage in net.eval().forward_features(torch.zeros(1, 3, size, size)).stages]


@pytest.fixture(scope="module")
def nets() -> dict[str, StagedNet]:
    """One network of each family."""
    return {name: blank(name) for name in FAMILIES}


@pytest.fixture(scope="module")
def shapes(nets: dict[str, StagedNet]) -> dict[tuple[str, int], list[Shape]]:
    """Shapes of the stages' outputs for each family and size."""
    return {(name, size): shapes_of(net, size) for name, net in nets.items() for size in SIZES}


def net_of(shapes: list[Shape], name: str = "") -> StagedNet:
    """Return the part of a network that branch_entries reads."""
    return SimpleNamespace(name=name, feature_shapes=lambda image_size: shapes)  # type: ignore[return-value]


def maps(*sizes: int) -> list[Shape]:
    return [(8, size, size) for size in sizes]


def toy(widths: tuple[int, ...] = (4, 6, 8), *, num_classes: int = 5, stride: int = 2, name: str = "toy") -> StagedNet:
    """Return a network of a few hundred parameters; each stage but the first divides the map by ``stride``."""

    def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    stages = [layer(a, b, 1 if i == 0 else stride) for i, (a, b) in enumerate(itertools.pairwise((3, *widths)))]
    head = Head(widths[-1], num_classes)
    return StagedNet(nn.Identity(), stages, head, num_classes=num_classes, in_channels=3, name=name)


def images(n: int = 4, size: int = 16) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


# Entries


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        pytest.param((32, 16, 8), (32, 16, 8), [1, 2, 3], id="equal"),
        pytest.param((32, 16, 8), (16, 8, 4), [1, 2, 3], id="equal-depth-wins-over-size"),
        pytest.param((16, 8, 4, 4), (16, 8, 4, 2), [1, 2, 3, 4], id="four-four"),
        pytest.param((32, 16, 8, 4), (32, 16, 8), [1, 2, 2, 3], id="ResNet50-wrn"),
        pytest.param((32, 16, 8, 4), (16, 8, 4), [1, 1, 2, 3], id="ResNet50-Shuffle"),
        pytest.param((32, 16, 8), (16, 8, 4, 4), [1, 2, 4], id="wrn-vgg"),
        pytest.param((32, 16, 8), (32, 16, 8, 4), [1, 2, 4], id="wrn-ResNet50"),
        pytest.param((8, 8, 8), (8, 8, 8, 8, 8, 8), [2, 4, 6], id="depth-breaks-ties"),
        pytest.param((32, 16, 8, 4), (32, 4), [1, 1, 1, 2], id="two-stage-student"),
        pytest.param((8,), (16, 8), [2], id="one-stage-teacher"),
    ],
)
def test_entries(teacher: tuple[int, ...], student: tuple[int, ...], expected: list[int]) -> None:
    entries = branch_entries(net_of(maps(*student)), net_of(maps(*teacher)), 32)
    assert [entry.teacher_stage for entry in entries] == list(range(1, len(teacher) + 1))
    assert [entry.student_stage for entry in entries] == expected


def test_entries_of_every_two_families(shapes: dict[tuple[str, int], list[Shape]]) -> None:
    for size, teacher, student in itertools.product(SIZES, FAMILIES, FAMILIES):
        teacher_shapes, student_shapes = shapes[teacher, size], shapes[student, size]
        *inner, last = branch_entries(net_of(student_shapes), net_of(teacher_shapes), size)
        chosen = [entry.student_stage for entry in inner]
        assert chosen == sorted(chosen)
        assert set(chosen) <= set(range(1, len(student_shapes)))
        assert len(set(chosen)) == min(len(teacher_shapes), len(student_shapes)) - 1
        assert (last.teacher_stage, last.student_stage) == (len(teacher_shapes), len(student_shapes))
        assert [entry.into_head for entry in (*inner, last)] == [False] * len(inner) + [True]
        for entry in (*inner, last):
            assert entry.teacher_shape == teacher_shapes[entry.teacher_stage - 1]
            assert entry.student_shape == student_shapes[entry.student_stage - 1]


def test_families_cover_the_zoo() -> None:
    def sizes(name: str) -> tuple[int, ...]:
        return tuple(height for _, height, _ in shapes_of(blank(name), 32))

    known = {sizes(name) for name in FAMILIES}
    assert {name for name in models.names() if sizes(name) not in known} == set()


def test_a_student_of_one_stage_is_refused() -> None:
    with pytest.raises(ValueError, match="tiny has 1 stage; a branch needs a student of 2 or more"):
        branch_entries(net_of(maps(8), name="tiny"), net_of(maps(8, 4)), 32)


@pytest.mark.parametrize(
    ("source", "target", "line"),
    [
        ((64, 32, 32), (32, 16, 16), "64x32x32 -> 3x3/2 -> student stage 2 input 32x16x16"),
        ((64, 32, 32), (32, 8, 8), "64x32x32 -> 3x3/2, 3x3/2 -> student stage 2 input 32x8x8"),
        ((64, 4, 4), (32, 16, 16), "64x4x4 -> 4x4*2, 4x4*2 -> student stage 2 input 32x16x16"),
        ((64, 8, 8), (32, 8, 8), "64x8x8 -> 1x1 -> student stage 2 input 32x8x8"),
        ((64, 7, 7), (32, 4, 4), "64x7x7 -> 3x3/2 -> student stage 2 input 32x4x4"),
        ((64, 7, 7), (32, 3, 3), "64x7x7 -> 3x3/2, pool -> student stage 2 input 32x3x3"),
    ],
)
def test_an_entry_describes_itself(source: Shape, target: Shape, line: str) -> None:
    assert str(BranchEntry(1, source, 1, target, into_head=False)) == f"teacher stage 1 {line}"
    into_head = str(BranchEntry(3, source, 3, target, into_head=True))
    assert into_head == f"teacher stage 3 {line}".replace("student stage 2", "student head")


# Transforms


@pytest.mark.parametrize(
    ("source", "target", "kernels"),
    [
        (32, 32, [(nn.Conv2d, 1, 1)]),
        (32, 16, [(nn.Conv2d, 3, 2)]),
        (7, 4, [(nn.Conv2d, 3, 2)]),
        (32, 8, [(nn.Conv2d, 3, 2)] * 2),
        (8, 16, [(nn.ConvTranspose2d, 4, 2)]),
        (4, 32, [(nn.ConvTranspose2d, 4, 2)] * 3),
        (16, 17, [(nn.Conv2d, 1, 1)]),
    ],
)
def test_layers_of_a_transform(source: int, target: int, kernels: list[tuple[type, int, int]]) -> None:
    transform = FeatureTransform((5, source, source), (6, target, target))
    convolutions = [m for m in transform if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert [(type(c), c.kernel_size[0], c.stride[0]) for c in convolutions] == kernels
    assert [c.in_channels for c in convolutions] == [5] + [6] * (len(kernels) - 1)
    assert all(c.bias is None for c in convolutions)
    names = [type(m).__name__ for m in transform if m not in convolutions]
    assert names[: 2 * len(kernels)] == ["BatchNorm2d", "ReLU"] * len(kernels)
    assert (names[2 * len(kernels) :] == ["AdaptiveAvgPool2d"]) == (source == 16)


def test_transforms_meet_the_shape_at_every_size(shapes: dict[tuple[str, int], list[Shape]]) -> None:
    wanted = set()
    for size, teacher, student in itertools.product(SIZES, FAMILIES, FAMILIES):
        for entry in branch_entries(net_of(shapes[student, size]), net_of(shapes[teacher, size]), size):
            wanted.add((entry.teacher_shape[1:], entry.student_shape[1:]))
    assert len(wanted) > 100
    with torch.device("meta"):
        for source, target in wanted:
            out = FeatureTransform((2, *source), (3, *target))(torch.empty(2, 2, *source))
            assert out.shape == (2, 3, *target)


@pytest.mark.parametrize(
    ("source", "target"), [((8, 4, 4), (16,)), ((8,), (8, 4, 4)), ((8, 4, 0), (8, 4, 4)), ((8, 16, 16), (8, 16, 4))]
)
def test_an_impossible_transform_is_refused_with_both_shapes(source: Shape, target: Shape) -> None:
    with pytest.raises(ValueError, match="no transform") as refusal:
        FeatureTransform(source, target)
    assert str(source) in str(refusal.value)
    assert str(target) in str(refusal.value)


# The student-aware teacher


@pytest.mark.parametrize("student", FAMILIES)
def test_students_run_from_the_output_of_a_transform(student: str, nets: dict[str, StagedNet]) -> None:
    """Prove, with the test of all shapes, that every teacher of the zoo serves every student."""
    net = nets[student].eval()
    for entry, shape in enumerate(shapes_of(net, 32), start=2):
        logits = net.forward_from(entry, torch.zeros(2, *shape))
        assert logits.shape == (2, 100)


@pytest.mark.parametrize(
    ("teacher", "student", "size"),
    [
        ("vgg13", "MobileNetV2", 32),
        ("ResNet50", "vgg8", 16),
        ("resnet32x4", "ShuffleV2", 16),
        ("wrn_16_2", "ShuffleV1", 28),
        ("MobileNetV2", "resnet8", 33),
        ("vgg8", "wrn_16_1", 8),
        ("wrn_16_1", "vgg8", 48),
        ("resnet8", "MobileNetV2", 64),
    ],
)
def test_trains_every_parameter_of_real_pairs(teacher: str, student: str, size: int) -> None:
    torch.manual_seed(0)
    net = models.build(teacher, num_classes=7)
    stages = range(1, net.num_stages + 1)
    aware = StudentAwareTeacher(net, models.build(student, num_classes=7), image_size=size, branch_stages=stages)
    logits, branch_logits = aware(images(2, size))
    assert len(branch_logits) == len(stages)
    torch.stack([logits, *branch_logits]).logsumexp(-1).sum().backward()
    assert [name for name, p in aware.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_training_equals_teacher_transform_and_student_by_hand() -> None:
    torch.manual_seed(0)
    teacher, student = toy((4, 6, 8)), toy((3, 5, 7), stride=1)
    aware = StudentAwareTeacher(teacher, student, image_size=16).double()
    x = images().double()
    logits, branch_logits = aware(x)
    features = teacher.forward_features(x)
    assert torch.equal(logits, features.logits)
    student = student.double()
    for i, branch in enumerate(branch_logits, start=1):
        transform, _ = aware.branches[str(i)]
        torch.testing.assert_close(branch, student.forward_from(i + 1, transform(features.stages[i - 1])))


def test_evaluation_is_the_teacher_alone() -> None:
    torch.manual_seed(0)
    teacher = toy()
    aware = StudentAwareTeacher(teacher, toy(), image_size=16)
    ran = []
    for branch in aware.branches.values():
        branch.register_forward_hook(lambda *_: ran.append(True))
    aware(images())
    assert len(ran) == 2
    aware.eval()
    assert torch.equal(aware(images()), teacher(images()))
    assert len(ran) == 2


def test_the_exported_teacher_has_no_branch() -> None:
    teacher = toy()
    names = list(teacher.state_dict())
    aware = StudentAwareTeacher(teacher, toy(), image_size=16)
    assert aware.teacher is teacher
    assert list(aware.teacher.state_dict()) == names
    assert set(aware.state_dict()) > {f"teacher.{name}" for name in names}


def test_the_student_is_copied_and_unchanged() -> None:
    torch.manual_seed(0)
    student = toy().eval().requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    aware = StudentAwareTeacher(toy(), student, image_size=16)
    held = {id(tensor) for tensor in (*aware.parameters(), *aware.buffers())}
    assert held.isdisjoint(id(tensor) for tensor in (*student.parameters(), *student.buffers()))
    assert all(p.requires_grad for p in aware.parameters())
    assert all(module.training for module in aware.modules())
    assert torch.equal(aware.branches["2"][1].head.fc.weight, student.head.fc.weight)

    optimizer = torch.optim.SGD(aware.parameters(), lr=0.1)
    torch.stack(aware(images())[1]).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert not student.training


@pytest.mark.parametrize("share", [False, True])
def test_branches_copy_the_student_each_or_share_one_copy(share: bool) -> None:
    student = toy()
    aware = StudentAwareTeacher(toy(), student, image_size=16, share_student=share)
    (first_transform, first), (second_transform, second) = aware.branches["1"], aware.branches["2"]
    assert (first.head is second.head) is share
    assert (first.stages[1] is second.stages[0]) is share
    assert len(first.stages) == 2 and len(second.stages) == 1
    assert first_transform is not second_transform

    def size(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    tails = size(student.tail(2)) + (0 if share else size(student.tail(3)))
    assert size(aware) == size(aware.teacher) + size(first_transform) + size(second_transform) + tails


@pytest.mark.parametrize(("stages", "expected"), [(None, [1, 2]), ([2], [2]), ((3, 1), [1, 3]), ([1, 2, 3], [1, 2, 3])])
def test_stages_choose_the_branches(stages: list[int] | None, expected: list[int]) -> None:
    aware = StudentAwareTeacher(toy(), toy(), image_size=16, branch_stages=stages)
    assert [entry.teacher_stage for entry in aware.entries] == expected
    assert list(aware.branches) == [str(stage) for stage in expected]
    assert len(aware(images())[1]) == len(aware.describe()) == len(expected)
    if 3 in expected:
        assert len(aware.branches["3"][1].stages) == 0


def test_given_entries() -> None:
    teacher, student = toy(), toy()
    target = student.feature_shapes(16)[0]
    entries = [BranchEntry(t, teacher.feature_shapes(16)[t - 1], 1, target, into_head=False) for t in (1, 2)]
    aware = StudentAwareTeacher(teacher, student, image_size=16, entries=entries)
    assert [len(branch[1].stages) for branch in aware.branches.values()] == [2, 2]
    assert len(aware(images())[1]) == 2
    with pytest.raises(ConfigError, match="of 1, 2, got"):
        StudentAwareTeacher(teacher, student, image_size=16, branch_stages=[3], entries=entries)


@pytest.mark.parametrize("stages", [[], [0], [4], [-1], [1, 1]])
def test_unknown_stages_are_refused(stages: list[int]) -> None:
    with pytest.raises(
        ConfigError, match=r"sftn\.branch_stages must be distinct stages of the teacher, of 1, 2, 3, got"
    ):
        StudentAwareTeacher(toy(), toy(), branch_stages=stages)


def test_different_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="teacher has 5 classes, student has 6"):
        StudentAwareTeacher(toy(), toy(num_classes=6))


def test_the_earliest_branch_has_the_students_names() -> None:
    student = toy()
    aware = StudentAwareTeacher(toy(), student, image_size=16, branch_stages=[3, 2, 1])
    entry, state = aware.earliest_branch()
    assert (entry.teacher_stage, entry.student_stage, entry.place) == (1, 1, "student stage 2")
    late = {
        name: value for name, value in student.state_dict().items() if name.startswith(("stages.1", "stages.2", "head"))
    }
    assert state.keys() == late.keys() and all(torch.equal(state[name], late[name]) for name in late)
    aware(images())  # which changes its statistics and those of no student
    statistics = [name for name in state if name.endswith("running_mean")]
    changed = aware.earliest_branch()[1]
    assert statistics and not any(torch.equal(changed[name], late[name]) for name in statistics)


def test_of_branches_into_one_stage_the_earliest_is_the_first_teacher_stages() -> None:
    student = toy()
    target = student.feature_shapes(16)[0]
    entries = [BranchEntry(t, toy().feature_shapes(16)[t - 1], 1, target, into_head=False) for t in (2, 1)]
    entry, state = StudentAwareTeacher(toy(), student, image_size=16, entries=entries).earliest_branch()
    assert entry.teacher_stage == 1 and "stages.1.0.weight" in state
    head = StudentAwareTeacher(toy(), student, image_size=16, branch_stages=[3]).earliest_branch()
    assert head[0].place == "student head" and head[1].keys() == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["ShuffleV1", "vgg8", "MobileNetV2", "resnet8x4", "resnet18"])
def test_the_earliest_branch_fits_every_family(name: str, share: bool) -> None:
    student = models.build(name, num_classes=5, image_size=32)
    aware = StudentAwareTeacher(models.build("wrn_16_1", num_classes=5), student, image_size=32, share_student=share)
    entry, state = aware.earliest_branch()
    tail, own = student.tail(entry.student_stage + 1), student.state_dict()
    assert len(state) == len(tail.state_dict()) and all(torch.equal(value, own[key]) for key, value in state.items())
