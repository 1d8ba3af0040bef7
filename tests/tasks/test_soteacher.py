"""SoTeacher's regularisers against loops over layers and images, and through a graphed step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from engine import fake_cuda_graph
from torch import nn

from sftn_fast import models
from sftn_fast.config import OptimConfig, SoTeacherConfig
from sftn_fast.engine import Layout, Schedule
from sftn_fast.engine.optim import build_sgd
from sftn_fast.engine.step import TrainStep
from sftn_fast.tasks import SoTeacherTask
from sftn_fast.tasks.soteacher import lipschitz_bound

SAMPLES, CLASSES = 8, 4
IMAGES = torch.randn(SAMPLES, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def task(**weights: float) -> SoTeacherTask:
    torch.manual_seed(0)
    net = models.build("resnet8", num_classes=CLASSES)
    return SoTeacherTask(net, SoTeacherConfig(**weights), num_samples=SAMPLES, epochs=4).train()


def batch(*index: int) -> tuple[torch.Tensor, ...]:
    chosen = torch.tensor(index)
    return IMAGES[chosen], chosen % CLASSES, chosen


def test_the_bound_is_the_sum_over_layers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    net[1].weight.data = torch.tensor([1.0, -3.0, 2.0, 0.5])
    net[1].running_var = torch.tensor([1.0, 4.0, 0.25, 1.0])
    expected = sum(abs(w) for w in net[0].weight.flatten().tolist())
    expected += max(g / (v + 1e-5) ** 0.5 for g, v in ((1, 1), (3, 4), (2, 0.25), (0.5, 1)))
    expected += max(sum(abs(net[4].weight[row, column].item()) for row in range(2)) for column in range(4))
    assert lipschitz_bound(net).item() == pytest.approx(expected, rel=1e-5)


def test_layers_without_weights_have_no_bound() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.BatchNorm1d(2, track_running_stats=False))
    assert lipschitz_bound(net).item() == pytest.approx(net[0].weight.abs().sum(0).max().item())


def test_an_image_is_compared_with_the_mean_of_its_earlier_predictions() -> None:
    ours = task()
    ours.model.eval()  # the same prediction in every step
    seen: dict[int, list[torch.Tensor]] = {}
    for epoch, index in enumerate([(0, 1), (1, 2), (0, 1), (1, 0)]):
        ours.begin_epoch(epoch)
        terms = ours(*batch(*index))
        with torch.no_grad():
            predictions = ours.model(batch(*index)[0]).softmax(1)
            ours.model.head.fc.bias += torch.randn(CLASSES, generator=torch.Generator().manual_seed(epoch))
        expected = 0.0
        for image, prediction in zip(index, predictions, strict=True):
            if image in seen:
                expected += (prediction - torch.stack(seen[image]).mean(0)).square().sum().item() / 2
            seen.setdefault(image, []).append(prediction)
        assert terms["consistency"].item() == pytest.approx(expected, abs=1e-6)
        assert ours.weight.item() == (epoch + 1) / 4
        total = terms["ce"] + 1e-5 * terms["lipschitz"] + (epoch + 1) / 4 * terms["consistency"]
        torch.testing.assert_close(terms["total"].detach(), total)
    assert ours.counts.tolist() == [3, 4, 1, 0, 0, 0, 0, 0]


def test_without_weights_it_is_the_cross_entropy() -> None:
    ours = task(lipschitz=0, consistency=0)
    ours.begin_epoch(0)
    ours(*batch(0, 1))
    terms = ours(*batch(0, 1))
    assert terms["total"].item() == terms["ce"].item()


@pytest.mark.parametrize("name", ["lipschitz", "consistency"])
def test_each_term_has_a_gradient(name: str) -> None:
    ours = task(**{"lipschitz": 0.0, "consistency": 0.0, name: 1.0})
    ours.counts.fill_(1)  # predictions of an earlier epoch, which differ from these
    ours.begin_epoch(3)
    weights = [ours.model.head.fc.weight, ours.model.stem[0].weight]
    images, target, index = batch(0, 1, 2)
    whole = torch.autograd.grad(ours(images, target, index)["total"], weights)
    alone = torch.autograd.grad(F.cross_entropy(ours.model(images), target), weights)
    assert all(not torch.allclose(a, b) for a, b in zip(whole, alone, strict=True))


def test_evaluation_remembers_nothing() -> None:
    ours = task().eval()
    ours(*batch(0, 1))
    assert ours.counts.sum() == 0


@pytest.mark.parametrize("graphed", [False, True])
def test_a_replayed_step_sees_the_weight_of_its_epoch(graphed: bool) -> None:
    """Train the same bits with a graph as without; begin_epoch asks for no new recording."""
    results = []
    for record in (None, fake_cuda_graph.record if graphed else None):
        ours = task()
        sgd = build_sgd(ours, OptimConfig(lr=0.05, batch_size=4), 0.05)
        schedule = Schedule(OptimConfig(lr=0.05, batch_size=4), 0.05, 2, 4)
        step = TrainStep(ours, sgd, schedule, Layout(torch.device("cpu")), record=record, must_record=graphed)
        for number in range(8):
            if number % 2 == 0:
                assert ours.begin_epoch(number // 2) is False
            images, target, index = batch(*range(4 * (number % 2), 4 * (number % 2) + 4))
            step(SimpleNamespace(images=images, target=target, index=index), number)
        results.append(ours.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=0, atol=0, msg=name)
