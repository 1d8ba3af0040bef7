"""The measured trainings: method, networks and batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from sftn_fast.data import resources
from sftn_fast.data.source import Images

NUM_SAMPLES, NUM_CLASSES, SIZE = 50_000, 100, 32  # CIFAR-100's
MEAN, STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
PADDING = 4
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4
BRANCHES = (1, 2, 3)  # teacher stages with a branch, in SFTN
WORKERS = min(8, resources.cores())
"""Loader processes of the usual loop: RepDistiller's 8, or fewer on a machine with fewer processors."""


@dataclass(frozen=True)
class TrainingCase:
    """One method on one pair of networks. ``sftn`` trains the teacher, the others the student."""

    method: str
    teacher: str
    student: str
    batch_size: int = 64

    @property
    def name(self) -> str:
        what = "SFTN teacher, 3 branches" if self.method == "sftn" else self.method.upper()
        return f"{what}: {self.teacher} -> {self.student}, batch {self.batch_size}"


_PAIRS = (("wrn_40_2", "wrn_16_2"), ("resnet32x4", "resnet8x4"))
_BATCHES = {"kd": 64, "crd": 64, "rkd": 256, "sftn": 64}
CASES = [
    TrainingCase(method, teacher, student, batch) for teacher, student in _PAIRS for method, batch in _BATCHES.items()
]


def images() -> Images:
    """Return as many images as CIFAR-100 has, of noise: their content does not affect the time."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randint, generator=generator)
    pixels = draw(256, (NUM_SAMPLES, 3, SIZE, SIZE), dtype=torch.uint8)
    return Images(pixels, draw(NUM_CLASSES, (NUM_SAMPLES,)))
