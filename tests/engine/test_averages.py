"""Means over images, for batches, parts and shares of any size."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sftn_fast.engine import distributed
from sftn_fast.engine.averages import EPOCH, WINDOW, AverageMeter

from .ranks import SharedData, on_ranks
from .stubs import Data, TrainLoader, run_fit, split

COUNT, BATCH = 34, 32


class LastBatchLoader(TrainLoader):
    """Loader that keeps the smaller last batch."""

    def __len__(self) -> int:
        return -(-len(self.target) // self.batch_size)


class Fixed(nn.Module):
    """Cross-entropy of a network that does not learn, beside a weight that does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 6)).requires_grad_(False)
        self.other = nn.Parameter(torch.zeros(()))

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        # Computed from the index, because the loader adds noise to the images.
        ce = F.cross_entropy(self.model[1].weight[:, index % 3].T, target)
        return {"total": ce + self.other.square(), "ce": ce.detach()}


def of_all(images: Tensor, target: Tensor) -> float:
    return Fixed()(images, target, torch.arange(len(target)))["ce"].item()


@pytest.mark.parametrize("accumulate", [1, 4])
def test_an_epochs_mean_is_that_of_its_images(tmp_path: Path, accumulate: int) -> None:
    data = Data(train_size=COUNT)
    data.train = LastBatchLoader(*split(COUNT, 1), BATCH)
    optim = {"batch_size": BATCH, "accumulate": accumulate}
    result = run_fit(tmp_path, task=Fixed(), data=data, epochs=2, optim=optim, engine={"log_every": 2})
    expected = of_all(*split(COUNT, 1))
    for row in result.history:
        assert row["train_ce"] == pytest.approx(expected, rel=1e-6)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["ce"] for line in lines if line["kind"] == "train"] == [pytest.approx(expected, rel=1e-6)] * 2


def test_what_is_skipped_does_not_count() -> None:
    meter = AverageMeter(torch.device("cpu"))
    for value, images, skipped in ((1.0, 6, 0.0), (math.nan, 100, 1.0), (4.0, 2, 0.0)):
        meter.add({"ce": torch.tensor(value), "skipped": torch.tensor(skipped)}, images)
    again = AverageMeter(torch.device("cpu"))
    again.load_state_dict(copy.deepcopy(meter.state_dict()))
    for each in (meter, again):
        assert each.read(WINDOW) == {"ce": 1.75, "skipped": 1.0}
        assert math.isnan(each.read(WINDOW)["ce"])
        assert each.read(EPOCH) == {"ce": 1.75, "skipped": 1.0}


def unequal(_: None) -> dict[str, float]:
    """Return the means of one image on one rank and three on the other."""
    meter = AverageMeter(torch.device("cpu"))
    rank = distributed.rank()
    meter.add({"ce": torch.tensor(5.0 - 4 * rank), "skipped": torch.tensor(0.0)}, 1 + 2 * rank)
    return meter.read(EPOCH)


def test_shares_of_unequal_size() -> None:
    assert on_ranks(2, unequal, None) == [{"ce": 2.0, "skipped": 0.0}] * 2


class FirstUnused(nn.Module):
    """Task with a layer that no step uses or, with ``by_main``, only the main rank's steps."""

    def __init__(self, *, by_main: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.aside = nn.Linear(6, 6)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 36, 6))
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.by_main = 0, by_main

    def forward(self, images: Tensor, target: Tensor, index: Tensor) -> dict[str, Tensor]:
        logits = self.model(images)
        if self.by_main and distributed.is_main():
            logits = self.aside(logits)
        self.calls += 1
        self.steps += 1
        total = F.cross_entropy(logits, target)
        return {"total": total}


def train_unused(folder: Path, by_main: bool) -> tuple[dict[str, Tensor], int, list[dict[str, Any]]]:
    task = FirstUnused(by_main=by_main)
    result = run_fit(folder, task=task, data=SharedData(train_size=24, batch_size=12), optim={"batch_size": 12})
    return task.state_dict(), task.calls, result.history


@pytest.mark.parametrize("by_main", [False, True])
def test_a_layer_that_steps_do_not_use(tmp_path: Path, by_main: bool) -> None:
    """Average the other gradients over several ranks. The search for unused layers is rolled back."""
    (first, calls, history), (second, _, _) = on_ranks(2, train_unused, tmp_path, by_main)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert first["steps"] == calls == 4 and len(history) == 2
    if not by_main:
        alone, *_ = train_unused(tmp_path / "alone", False)
        for name, tensor in alone.items():
            torch.testing.assert_close(tensor, first[name])
