"""Real methods on real data sets: stopped after 7 of 20 steps and resumed, they end with the bits of an unbroken run,
including those of their memories."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sftn_fast import data, distillers, models
from sftn_fast.config import DataConfig, EngineConfig, OptimConfig, SFTNConfig
from sftn_fast.data import ImageData
from sftn_fast.engine import Interrupted, fit, read_checkpoint
from sftn_fast.engine.protocols import Splits
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import DistillTask, SFTNTask, Task

from .stubs import StoppingLoader, without_timing

BATCH, STEPS_AN_EPOCH = 8, 10
CONVNEXT = "timm:test_convnext:drop_path_rate=0.2"
VIT = "timm:test_vit:patch_size=8:depth=4:embed_dim=16:num_heads=2:drop_path_rate=0.2:proj_drop_rate=0.1"
NOT_COMPARED = ("history", "stopwatch", "log_offsets")  # they depend on the clock


def crops_and_flips(root: Path) -> DataConfig:
    return DataConfig("fake", train_size=BATCH * STEPS_AN_EPOCH, image_size=8, crop_padding=2, flip=True)


def larger(root: Path) -> DataConfig:
    return dataclasses.replace(crops_and_flips(root), image_size=32)


def mixed(root: Path) -> DataConfig:
    return dataclasses.replace(crops_and_flips(root), mixup=0.4, cutmix=1.0, label_smoothing=0.1)


def policies(root: Path) -> DataConfig:
    return dataclasses.replace(crops_and_flips(root), auto_augment="randaugment", random_erasing=0.5)


def image_folder(root: Path) -> DataConfig:
    image = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    for split, count in (("train", BATCH * STEPS_AN_EPOCH // 2), ("val", 3)):
        for name in ("cats", "dogs"):
            folder = root / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = random.integers(256, size=(10, 10, 3), dtype=np.uint8)
                image.fromarray(pixels).save(folder / f"{number:03d}.png")
    return DataConfig("folder", root=str(root / "images"), image_size=8)


def mixed_files(root: Path) -> DataConfig:
    return dataclasses.replace(image_folder(root), loader="torchvision", workers=1, cutmix=1.0)


def distil(images: ImageData, spec: str = "crd:negatives=8,kd,at=10") -> Task:
    student, teacher = (models.build(name, num_classes=images.num_classes) for name in ("resnet8", "resnet14"))
    distiller = distillers.build(
        spec,
        student=student,
        teacher=teacher,
        num_samples=images.num_train,
        image_size=images.image_size,
        labels=images.train_labels,
    )
    return DistillTask(student, distiller)


def distil_timm(images: ImageData, *, student: str = CONVNEXT, teacher: str = VIT) -> Task:
    pytest.importorskip("timm")
    networks = (models.build(name, num_classes=images.num_classes, image_size=32) for name in (student, teacher))
    learner, taught_by = networks
    distiller = distillers.build(
        "kd,at=10", student=learner, teacher=taught_by, num_samples=images.num_train, image_size=32
    )
    return DistillTask(learner, distiller)


def distil_into_a_vit(images: ImageData) -> Task:
    return distil_timm(images, student=VIT, teacher=CONVNEXT)


def distil_two_views(images: ImageData) -> Task:
    return distil(images, "mlld,at=10")


def student_aware(images: ImageData) -> Task:
    teacher, student = (models.build(name, num_classes=images.num_classes) for name in ("resnet14", "resnet8"))
    return SFTNTask(StudentAwareTeacher(teacher, student, image_size=images.image_size), SFTNConfig())


@pytest.mark.parametrize(
    ("source", "build"),
    [
        (crops_and_flips, distil),
        (image_folder, distil),
        (crops_and_flips, student_aware),
        (larger, distil_timm),
        (larger, distil_into_a_vit),
        (mixed, distil),
        (mixed_files, distil),
        (mixed, student_aware),
        (policies, student_aware),
        (policies, distil_two_views),
    ],
)
def test_a_method_resumed_in_mid_epoch_ends_with_the_same_bits(source, build, tmp_path):
    images = data.build(source(tmp_path), seed=0, batch_size=BATCH, device="cpu")
    if build is distil_two_views:
        images = images.with_views(2, strong=True)

    def train(name: str, batches: Splits, seed: int) -> Task:
        torch.manual_seed(7)  # the teacher, which is in no checkpoint
        task = build(images)
        if seed:
            torch.manual_seed(seed)
            for parameter in task.parameters():
                torch.nn.init.normal_(parameter)
        (tmp_path / name).mkdir(exist_ok=True)
        optim, engine = OptimConfig(lr=0.02, batch_size=BATCH), EngineConfig(device="cpu", log_every=3)
        fit(task, batches, epochs=2, optim=optim, engine=engine, folder=tmp_path / name, fingerprint={}, seed=1)
        return task

    def everything(name: str) -> dict[str, Any]:
        newest = max((tmp_path / name / "checkpoints").iterdir())
        return {key: value for key, value in read_checkpoint(newest).items() if key not in NOT_COMPARED}

    whole = train("unbroken", images.mixed(), seed=0)
    stopping = dataclasses.replace(images.mixed(), train=StoppingLoader(images.mixed().train, 7, signal.SIGTERM))
    with pytest.raises(Interrupted):
        train("broken", stopping, seed=0)
    assert read_checkpoint(tmp_path / "broken" / "checkpoints" / "step_000000007")["position"] == [0, 7, 7]
    resumed = train("broken", images.mixed(), seed=99)  # resuming replaces these weights

    ours, theirs = resumed.state_dict(), whole.state_dict()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    assert build is not distil or any("student_bank" in name for name in theirs)
    for name in ("unbroken", "broken"):
        assert everything(name)["position"] == [2, 0, 2 * STEPS_AN_EPOCH]
    assert_equal(everything("broken"), everything("unbroken"))
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("broken", "unbroken")]
    ours, theirs = ([without_timing(json.loads(line)) for line in each] for each in lines)
    assert ours == theirs


def assert_equal(ours: Any, theirs: Any) -> None:
    """Compare everything that a checkpoint may hold."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_equal(mine, other)
    elif isinstance(theirs, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert ours == theirs
