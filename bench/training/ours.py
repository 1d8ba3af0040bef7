"""A training step as in `python -m sftn_fast.train`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from bench.training.cases import (
    BRANCHES,
    LR,
    MEAN,
    MOMENTUM,
    NUM_CLASSES,
    NUM_SAMPLES,
    PADDING,
    SIZE,
    STD,
    WEIGHT_DECAY,
    TrainingCase,
    images,
)
from sftn_fast import distillers, models
from sftn_fast.config import EngineConfig, OptimConfig, SFTNConfig
from sftn_fast.data.loaders import DeviceImages, TrainLoader
from sftn_fast.engine import Schedule
from sftn_fast.engine.averages import AverageMeter
from sftn_fast.engine.device import resolve_device
from sftn_fast.engine.step import build_step
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import DistillTask, SFTNTask, Task
from sftn_fast.utils.allocator import keep_freed_memory

SPECS = {"kd": "kd=0.9", "crd": "crd=0.8", "rkd": "rkd=1"}


def training(case: TrainingCase, engine: EngineConfig) -> tuple[Iterator[Any], Callable[[Any], None]]:
    """Return the batches and the step that trains on one of them, both on the engine's device."""
    device = resolve_device(engine.device)
    if device.type == "cpu":
        keep_freed_memory()  # as the program does
    data = DeviceImages.place(images(), MEAN, STD, device)
    loader = TrainLoader(data, seed=0, batch_size=case.batch_size, crop_padding=PADDING, flip=True)
    task = _task(case, data.labels)
    task.train()
    optim = OptimConfig(lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, batch_size=case.batch_size)
    train_step = build_step(task, Schedule(optim, LR, len(loader), epochs=240), engine, device)
    train_step.store_frozen()  # as the loop does
    meter, steps = AverageMeter(device), iter(range(len(loader) * 240))

    def step(batch: Any) -> None:
        meter.add(train_step(batch, next(steps)), len(batch.index))

    return (batch for epoch in range(240) for batch in train_step.batches(loader, epoch, 0)), step


def _task(case: TrainingCase, labels: Tensor) -> Task:
    teacher, student = (models.build(name, num_classes=NUM_CLASSES) for name in (case.teacher, case.student))
    if case.method == "sftn":
        return SFTNTask(StudentAwareTeacher(teacher, student, image_size=SIZE, branch_stages=BRANCHES), SFTNConfig())
    distiller = distillers.build(
        SPECS[case.method], student=student, teacher=teacher, num_samples=NUM_SAMPLES, image_size=SIZE, labels=labels
    )
    return DistillTask(student, distiller)
