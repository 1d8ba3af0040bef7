"""Knowledge distillation against its formula and RepDistiller's values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sftn_fast.data import Batch
from sftn_fast.distillers import registry
from sftn_fast.distillers.method import NetInfo, Setup
from sftn_fast.models import Features, build

# KDLoss of HobbitLong/RepDistiller, run in float64 on the logits below.
REPDISTILLER = {1.0: 1.143223150032633, 4.0: 2.821670978906749}


def features_of(logits: Tensor) -> Features:
    return Features(stem=logits, stages=[], preacts=None, pooled=logits, logits=logits)


@pytest.fixture(scope="module")
def setup() -> Setup:
    info = NetInfo.of(build("resnet8", num_classes=10), 8)
    return Setup(info, info, num_samples=4, image_size=8)


@pytest.mark.parametrize("temperature", REPDISTILLER)
def test_repdistillers_values(temperature: float, setup: Setup) -> None:
    n = torch.arange(40, dtype=torch.float64)
    student, teacher = 3 * (0.7 * n + 0.1).sin().view(4, 10), 3 * (0.3 * n + 0.2).cos().view(4, 10)
    kd = registry.find("kd")(setup, temperature=temperature)
    batch = Batch(torch.empty(4, 3, 8, 8), torch.arange(4), torch.arange(4))
    loss = kd.loss(features_of(student), features_of(teacher), batch)
    assert loss.item() == pytest.approx(REPDISTILLER[temperature], rel=1e-12)


def test_temperature_is_four_unless_given(setup: Setup) -> None:
    assert registry.find("kd")(setup).temperature == 4.0
