"""Targets of mixed images: the cross-entropy takes both classes, and methods get the one with the larger share."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models.networks import probed_once
from torch import Tensor

from sftn_fast import distillers, models
from sftn_fast.config import CollaborateConfig, SFTNConfig, SoTeacherConfig
from sftn_fast.distillers import registry
from sftn_fast.distillers.distiller import Distiller
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import CollaborativeTask, SFTNTask, SoTeacherTask, SupervisedTask, Task

SIZE, CLASSES, COUNT = 8, 6, 8
GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "mixed-images.md"
SPECS = {"crd": "crd:negatives=20", "fsp": "fsp:variant=joint", "sskd": "sskd:tf_share=0.4", "dkd": "dkd:warmup=0"}
SPECS["ofa"] = "ofa:eps=1.5"  # with an exponent of 1 the label cancels
TRAINED = [name for name in registry.names() if name != "ab"]  # which only initialises

torch.manual_seed(5)
IMAGES, INDEX, LABELS = torch.randn(COUNT, 3, SIZE, SIZE), torch.arange(COUNT), torch.arange(COUNT) % CLASSES
OTHER_LABELS = torch.tensor([3, 3, 1, 0, 5, 2, 2, 4])  # at no place the same, and other images have equal ones
SHARES = torch.lerp(F.one_hot(LABELS, CLASSES).float(), F.one_hot(OTHER_LABELS, CLASSES).float(), 0.3)


def network(name: str) -> models.StagedNet:
    return probed_once(models.build(name, num_classes=CLASSES))


def build(spec: str) -> Distiller:
    torch.manual_seed(0)
    student, teacher = network("resnet8"), network("resnet14")
    return distillers.build(spec, student=student, teacher=teacher, num_samples=COUNT, image_size=SIZE)


@cache
def terms(target: str) -> dict[str, Tensor]:
    """Return the terms of a first step by all methods together."""
    distiller = build(",".join(SPECS.get(name, name) for name in TRAINED)).train()
    distiller.begin_epoch(0)
    torch.manual_seed(1)
    views = torch.stack((IMAGES, IMAGES.flip(3)), 1)  # mlld takes two; the others see the first
    return distiller(views, {"mixed": SHARES, "labels": LABELS, "others": OTHER_LABELS}[target], INDEX)


def test_methods_get_the_label_and_the_cross_entropy_both_classes():
    mixed, single, other = (terms(target) for target in ("mixed", "labels", "others"))
    for name in TRAINED:
        torch.testing.assert_close(mixed[name], single[name], msg=name)
    torch.testing.assert_close(mixed["ce"], 0.7 * single["ce"] + 0.3 * other["ce"])
    assert not torch.isclose(other["ce"], single["ce"])


def test_the_guide_names_the_methods_that_read_a_label():
    reading = {name for name in TRAINED if not torch.isclose(terms("labels")[name], terms("others")[name])}
    (listed,) = re.findall(r"larges?t? share: (.*?), and `collaborate", GUIDE.read_text(), flags=re.DOTALL)
    assert re.findall(r"`(\w+)`", listed) == sorted(reading)


@pytest.mark.parametrize("spec", ["kd=1,ce=2", "kd=1:standardize=true,ce=2", "kd=1:divergence=jsd,ce=2", "hard=1,ce=2"])
def test_a_method_alone_is_computed_with_the_mixed_labels(spec):
    mixed, single, other = (build(spec).train()(IMAGES, target, INDEX) for target in (SHARES, LABELS, OTHER_LABELS))
    name = spec.partition("=")[0].partition(":")[0]
    torch.testing.assert_close(mixed["ce"], 0.7 * single["ce"] + 0.3 * other["ce"])
    torch.testing.assert_close(mixed[name], single[name])
    torch.testing.assert_close(mixed["total"].detach(), mixed[name] + 2 * mixed["ce"])


def test_two_momenta_split_off_the_mixed_labels():
    distiller = build("kd=1,at=10,ce=2")
    distiller.splits = True
    split = distiller.train()(IMAGES, SHARES, INDEX)
    torch.testing.assert_close(split["labels"].detach(), 2 * split["ce"])


def student_aware() -> Task:
    return SFTNTask(StudentAwareTeacher(network("resnet14"), network("resnet8"), image_size=SIZE), SFTNConfig())


def together(**options: str) -> Task:
    config = CollaborateConfig(own_views=False, **options)
    return CollaborativeTask([network("resnet8"), network("resnet8")], config)


TASKS = {
    "supervised": (lambda: SupervisedTask(network("resnet8")), ["ce"]),
    "soteacher": (lambda: SoTeacherTask(network("resnet8"), SoTeacherConfig(), num_samples=COUNT, epochs=1), ["ce"]),
    "sftn": (student_aware, ["teacher_ce", "branch_ce"]),
    "dml": (lambda: together(method="dml"), ["ce"]),
    "kdcl": (lambda: together(method="kdcl", ensemble="minlogit"), ["ce"]),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_task_weighs_the_classes_of_a_mixed_label_by_their_shares(name):
    build_task, cross_entropies = TASKS[name]

    def of(target: Tensor) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return build_task().train()(IMAGES, target, INDEX)

    mixed, first, second = of(SHARES), of(LABELS), of(OTHER_LABELS)
    for term in cross_entropies:
        torch.testing.assert_close(mixed[term], 0.7 * first[term] + 0.3 * second[term], rtol=1e-5, atol=1e-5)
    for term in mixed.keys() - {*cross_entropies, "total"}:
        torch.testing.assert_close(mixed[term], first[term])
