"""The deep families with fewer blocks, but each kind of block in each stage: exporters take seconds for each block."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from sftn_fast.models import mobilenet, mobilenet_v1, shufflenet_v1, shufflenet_v2


def make_shallow(patch: pytest.MonkeyPatch) -> None:
    first, second, (third, *_), last = mobilenet_v1.STAGES
    patch.setattr(mobilenet_v1, "STAGES", (first, second, (third, (512, 1)), last))
    rows = tuple(tuple((*row[:2], min(row[2], 2), row[3]) for row in stage) for stage in mobilenet.STAGES)
    patch.setattr(mobilenet, "STAGES", rows)
    patch.setattr(shufflenet_v1, "DEPTHS", (2, 2, 2))
    patch.setattr(shufflenet_v2, "DEPTHS", (1, 1, 1))
    if find_spec("torchvision"):
        theirs = import_module("torchvision.models.shufflenetv2")
        whole = theirs.ShuffleNetV2

        def shallow(repeats: list[int], channels: list[int], **options: Any) -> Any:
            return whole([2] * len(repeats), channels, **options)

        patch.setattr(theirs, "ShuffleNetV2", shallow)
