"""A training step as in the methods' published scripts: the baseline of `python -m bench training`.

Loader processes pass images one by one through PIL and torchvision's transforms, and for CRD also draw the negatives.
The teacher runs in evaluation mode under no_grad. Losses are the authors'; SGD is torch's default. On a GPU, batches
are copied asynchronously from pinned memory, which is faster than in the scripts, and cuDNN benchmarks its algorithms,
as in the scripts. The layout that a GPU's matrix units want is an option, which the scripts do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms.functional import to_pil_image

from bench.eager.contrastive import CRDLoss
from bench.eager.logits import SFTN, KDWithCrossEntropy
from bench.eager.negatives import InstanceSample
from bench.eager.relational import RKD
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
    WORKERS,
    TrainingCase,
    images,
)
from sftn_fast import models
from sftn_fast.sftn import StudentAwareTeacher

DIM, NEGATIVES = 128, 16384


class AugmentedImages(Dataset):
    """Images one by one, with CRD's negatives if requested."""

    def __init__(self, num_negatives: int = 0) -> None:
        data = images()
        self.pixels, self.labels = data.pixels, data.labels
        steps = [transforms.RandomCrop(SIZE, padding=PADDING), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        everyone = torch.arange(len(self.labels))
        self.draw = InstanceSample(self.labels, everyone, num_negatives) if num_negatives else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image = self.transform(to_pil_image(self.pixels[index]))
        negatives = () if self.draw is None else tuple(self.draw(torch.tensor([index])))
        return image, int(self.labels[index]), index, *negatives


def endless(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


class Embed(nn.Sequential):
    """CRD's."""

    def __init__(self, features: int) -> None:
        super().__init__(nn.Linear(features, DIM))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x))


def training(
    case: TrainingCase, device: str = "cpu", *, channels_last: bool = False
) -> tuple[Iterator[list[Tensor]], Callable[[list[Tensor]], None]]:
    """Return the batches, on the host, and the step that trains on one of them on ``device``."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    nets = (models.build(name, num_classes=NUM_CLASSES) for name in (case.teacher, case.student))
    teacher, student = (net.to(device, memory_format=layout) for net in nets)
    if case.method == "sftn":
        loss, learning = _sftn(teacher, student)
    else:
        loss, learning = _distillation(case.method, teacher, student, device)
    learning.to(device)
    sgd = torch.optim.SGD(learning.parameters(), LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    learning.train()

    def step(batch: list[Tensor]) -> None:
        images, *others = (part.to(device, non_blocking=True) for part in batch)
        total = loss(images.contiguous(memory_format=layout), *others)
        total.item()  # for the meter that every script prints
        sgd.zero_grad()
        total.backward()
        sgd.step()

    dataset = AugmentedImages(NEGATIVES if case.method == "crd" else 0)
    pin = device == "cuda"
    return endless(DataLoader(dataset, case.batch_size, shuffle=True, num_workers=WORKERS, pin_memory=pin)), step


def _sftn(teacher: models.StagedNet, student: models.StagedNet) -> tuple[Callable[..., Tensor], nn.Module]:
    aware, criterion = StudentAwareTeacher(teacher, student, image_size=SIZE, branch_stages=BRANCHES), SFTN()

    def loss(images: Tensor, target: Tensor, index: Tensor) -> Tensor:
        return criterion(*aware(images), target)

    return loss, aware


def _distillation(
    method: str, teacher: models.StagedNet, student: models.StagedNet, device: str
) -> tuple[Callable[..., Tensor], nn.Module]:
    teacher.eval()
    widths = [net.head.fc.in_features for net in (student, teacher)]
    ce, both, rkd = nn.CrossEntropyLoss(), KDWithCrossEntropy(), RKD()
    embeds = nn.ModuleList(Embed(width) for width in widths)
    crd = CRDLoss(NUM_SAMPLES, DIM).to(device) if method == "crd" else None

    def loss(images: Tensor, target: Tensor, index: Tensor, *negatives: Tensor) -> Tensor:
        ours = student.forward_features(images)
        with torch.no_grad():
            theirs = teacher.forward_features(images)
        if method == "kd":
            return both(ours.logits, theirs.logits, target)
        supervised = ce(ours.logits, target)
        if method == "rkd":
            return supervised + rkd(ours.pooled, theirs.pooled)
        assert crd is not None and method == "crd"
        embedded = embeds[0](ours.pooled), embeds[1](theirs.pooled)
        return supervised + 0.8 * crd(*embedded, index, *negatives)

    return loss, nn.ModuleList([student, embeds] if method == "crd" else [student])
