"""A tiny task and data set for the engine's tests: BatchNorm, dropout and augmentation, one millisecond a step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.config import EngineConfig, OptimConfig
from sftn_fast.engine import FitResult, fit

CLASSES, SIDE, TRAIN, TEST, BATCH = 6, 6, 80, 23, 8  # ten steps an epoch; 23 images are a partial last batch
TIMING = ("images_per_second", "data_wait", "seconds")


@dataclass
class Batch:
    images: Tensor
    target: Tensor
    index: Tensor


def split(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (size,), generator=generator)
    images = torch.randn(size, 3, SIDE, SIDE, generator=generator) + target[:, None, None, None] / 2
    return images, target


class TrainLoader:
    """Loader with order and noise that are a pure function of (epoch, step)."""

    def __init__(self, images: Tensor, target: Tensor, batch_size: int = BATCH):
        self.images, self.target, self.batch_size = images, target, batch_size
        self.asked: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.target) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        self.asked.append((epoch, start))
        order = torch.randperm(len(self.target), generator=torch.Generator().manual_seed(1000 + epoch))
        for step in range(start, len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            noise = torch.Generator().manual_seed(10_000 * epoch + step)
            images = self.images[index] + 0.1 * torch.randn(self.images[index].shape, generator=noise)
            yield Batch(images, self.target[index], index)


class StoppingLoader:
    """``loader`` that sends a signal, or crashes, when step ``at`` of the run (from 1) is requested."""

    def __init__(self, loader: Any, at: int, how: int | type[Exception]):
        self.loader, self.at, self.how = loader, at, how

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        for step, batch in enumerate(self.loader.epoch(epoch, start), start=start):
            if epoch * len(self) + step + 1 == self.at:
                if isinstance(self.how, int):
                    os.kill(os.getpid(), self.how)
                else:
                    raise self.how
            yield batch


class EvalLoader:
    def __init__(self, images: Tensor, target: Tensor, batch_size: int = BATCH):
        self.images, self.target, self.batch_size = images, target, batch_size
        self.num_samples = len(target)

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.arange(self.num_samples).split(self.batch_size):
            yield Batch(self.images[index], self.target[index], index)


class Data:
    def __init__(self, *, train_size: int = TRAIN, with_val: bool = False):
        self.num_train = train_size
        self.train: Any = TrainLoader(*split(train_size, 1))
        self.val = EvalLoader(*split(TEST, 2)) if with_val else None
        self.test = EvalLoader(*split(TEST, 3))


class TinyTask(nn.Module):
    """Cross-entropy plus a small term of an adapter beside the model, which must learn too."""

    def __init__(self, dropout: float = 0.3, classes: int = CLASSES):
        super().__init__()
        self.model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, classes),
        )
        self.adapter = nn.Linear(classes, 1)

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        logits = self.model(images)
        ce = F.cross_entropy(logits.float(), target)
        hint = self.adapter(logits).float().square().mean()
        return {"total": ce + 0.1 * hint, "ce": ce.detach(), "hint": hint.detach()}


def make_task(seed: int = 0, **options: Any) -> TinyTask:
    torch.manual_seed(seed)
    return TinyTask(**options)


def run_fit(folder: Path, *, task: nn.Module | None = None, data: Any = None, **options: Any) -> FitResult:
    """Call ``fit`` with small defaults. ``engine`` and ``optim`` are dicts of options that differ."""
    engine = EngineConfig(**{"device": "cpu", "log_every": 3, **options.pop("engine", {})})
    optim = OptimConfig(**{"lr": 0.05, "batch_size": BATCH, **options.pop("optim", {})})
    arguments: dict[str, Any] = {"epochs": 2, "fingerprint": {"optim": {"batch_size": optim.batch_size}}, "seed": 3}
    arguments |= options
    folder.mkdir(parents=True, exist_ok=True)
    return fit(
        make_task() if task is None else task, Data() if data is None else data,
        optim=optim, engine=engine, folder=folder, **arguments,
    )  # fmt: skip


def without_timing(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMING}
