"""Negatives for contrastive losses. The baseline always draws on the CPU, as a data loader does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.cases.case import Case
from bench.eager.negatives import InstanceSample
from sftn_fast import ops
from sftn_fast.ops import reference

BATCH, NEGATIVES = 64, 16384
NOTE = (
    "Here a call draws negatives and has no backward pass. The authors' code is NumPy, which torch.compile would hand "
    "back as it is: there is no `compile`."
)


def _negatives(num_samples: int, num_classes: int, device: str) -> dict[str, Callable[[], Tensor]]:
    labels = torch.randint(num_classes, (num_samples,))
    index = torch.randint(num_samples, (BATCH,))
    authors = InstanceSample(labels, index, NEGATIVES)
    on_device = index.to(device), labels.to(device)
    return {
        "eager": lambda: authors(index).to(device),
        "reference": lambda: reference.sample_negatives(*on_device, NEGATIVES),
        "ours": lambda: ops.sample_negatives(*on_device, NEGATIVES),
        "ours, int32": lambda: ops.sample_negatives(*on_device, NEGATIVES, dtype=torch.int32),
    }


CASES = [
    Case("negatives, 64 x 16384 of 50,000", partial(_negatives, 50_000, 100)),
    Case("negatives, 64 x 16384 of 1,281,167", partial(_negatives, 1_281_167, 1000)),
]
