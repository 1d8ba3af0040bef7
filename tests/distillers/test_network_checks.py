"""Networks that can't learn from each other: refused, and left in their mode."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import nn

from sftn_fast import distillers, models
from sftn_fast.config import CollaborateConfig
from sftn_fast.models import StagedNet
from sftn_fast.models.staged import Head
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import CollaborativeTask, DistillTask, SupervisedTask

CLASSES, SIZE = 4, 16


def net(name: str = "resnet8", **options: int) -> StagedNet:
    return models.build(name, num_classes=options.pop("num_classes", CLASSES), **options)


def distiller(student: StagedNet, teacher: StagedNet, spec: str = "kd") -> distillers.distiller.Distiller:
    return distillers.build(spec, student=student, teacher=teacher, num_samples=8, image_size=SIZE)


ENTRIES: dict[str, Callable[[StagedNet, StagedNet], nn.Module]] = {
    "distiller": distiller,
    "second teacher": lambda student, teacher: distillers.build(
        "kd", student=student, teacher=[net(num_classes=student.num_classes), teacher], num_samples=8, image_size=SIZE
    ),
    "task": lambda student, teacher: DistillTask(student, distiller(student, teacher)),
    "sftn": lambda student, teacher: StudentAwareTeacher(teacher, student, image_size=SIZE),
    "collaborative": lambda student, teacher: CollaborativeTask([teacher, student], CollaborateConfig()),
    "third peer": lambda student, teacher: CollaborativeTask(
        [net(num_classes=student.num_classes), teacher, student], CollaborateConfig(method="kdcl")
    ),
}


def of_parts(stem: nn.Module, *stages: nn.Module, head: nn.Module) -> StagedNet:
    return StagedNet(stem, list(stages), head, num_classes=CLASSES, in_channels=3, name="parts")


def the_same() -> tuple[StagedNet, StagedNet]:
    both = net()
    return both, both


def a_wrapped_one() -> tuple[StagedNet, StagedNet]:
    """Return two staged networks that share modules."""
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    module.append(nn.Linear(8, CLASSES))
    return models.as_staged(module, ["1", "2"], head="5"), models.as_staged(module, ["0", "2"], head="5")


def a_shared_stem() -> tuple[StagedNet, StagedNet]:
    student = net()
    return student, of_parts(student.stem, nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, 3), head=Head(8, CLASSES))


def a_teacher_inside() -> tuple[StagedNet, StagedNet]:
    teacher = net()
    student = of_parts(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), head=Head(8, CLASSES))
    student.add_module("helper", teacher)
    return student, teacher


def a_shared_weight() -> tuple[StagedNet, StagedNet]:
    student, teacher = net(), net()
    teacher.head.fc.weight = student.head.fc.weight
    return student, teacher


def a_shared_buffer() -> tuple[StagedNet, StagedNet]:
    student, teacher = net(), net()
    norms = [next(m for m in each.modules() if isinstance(m, nn.BatchNorm2d)) for each in (student, teacher)]
    norms[1].running_mean = norms[0].running_mean
    return student, teacher


def a_shared_dropout() -> tuple[StagedNet, StagedNet]:
    """Refuse a shared dropout, which the teacher's evaluation mode would switch off for the student."""
    dropout = nn.Dropout()
    nets = []
    for _ in range(2):
        stages = (nn.Sequential(nn.Conv2d(8, 8, 3), dropout), nn.Conv2d(8, 8, 3))
        nets.append(of_parts(nn.Conv2d(3, 8, 3), *stages, head=Head(8, CLASSES)))
    return nets[0], nets[1]


SHARING = (the_same, a_wrapped_one, a_shared_stem, a_teacher_inside, a_shared_weight, a_shared_buffer, a_shared_dropout)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("make", SHARING)
def test_what_is_shared_is_refused(make: Callable[[], tuple[StagedNet, StagedNet]], entry: str) -> None:
    student, teacher = make()
    student.train()
    modes = [module.training for module in student.modules()]
    with pytest.raises(ValueError, match=r"must share nothing, but .*: pass a copy"):
        ENTRIES[entry](student, teacher)
    assert [module.training for module in student.modules()] == modes


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_copy_teaches(entry: str) -> None:
    student = net().train()
    ENTRIES[entry](student, copy.deepcopy(student))
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ({"num_classes": 3}, {"num_classes": 4}, "has [34] classes, .* has [34]"),
        ({"num_classes": 1}, {"num_classes": 1}, "has 1 class: there is nothing to learn"),
        ({"in_channels": 3}, {"in_channels": 1}, "takes images of [13] channels, .* of [13]"),
    ],
)
def test_what_does_not_fit_is_refused(
    entry: str, student: dict[str, int], teacher: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        ENTRIES[entry](net(**student), net(**teacher))
    assert "\n" not in str(error.value)


def test_one_class_is_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="resnet8 has 1 class: there is nothing to learn"):
        SupervisedTask(net(num_classes=1))


def test_images_too_small_for_a_network_are_refused() -> None:
    deep = of_parts(nn.Conv2d(3, 8, 9), nn.Conv2d(8, 8, 9), nn.Conv2d(8, 8, 3), head=Head(8, CLASSES))
    for pair in ((net(), deep), (deep, net())):
        with pytest.raises(ValueError, match="parts can't run on images of 16 x 16 pixels: ") as error:
            distiller(*pair)
        assert "\n" not in str(error.value)
