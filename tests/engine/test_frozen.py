"""Frozen networks stored in autocast's dtype, and cuDNN's choice of algorithms: what changes, and what must not."""

from __future__ import annotations

import copy
import dataclasses
import signal

import pytest
import torch
from torch import nn

from sftn_fast import data, distillers, models
from sftn_fast.config import DataConfig, EngineConfig, OptimConfig
from sftn_fast.distillers.stored_weights import CAST, store_weights
from sftn_fast.engine import Interrupted, fit
from sftn_fast.engine.device import cudnn_benchmark, uses_cudnn_benchmark
from sftn_fast.engine.step import TrainStep
from sftn_fast.tasks import DistillTask

from .stubs import StoppingLoader

SIZE, BATCH = 8, 8
BF16 = torch.autocast("cpu", dtype=torch.bfloat16)
GPU, CPU = torch.device("cuda"), torch.device("cpu")


def outputs(net, images):
    with BF16, torch.no_grad():
        features = net.eval().forward_features(images, preact=True)
    return [features.stem, *features.stages, *features.preacts, features.pooled, features.logits]


def dtypes(net):
    return {parameter.dtype for parameter in net.parameters()}


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV2"])
def test_outputs_keep_their_bits(name):
    torch.manual_seed(0)
    net, images = models.build(name, num_classes=5), torch.randn(2, 3, SIZE, SIZE)
    before, weights = outputs(net, images), copy.deepcopy(net.state_dict())
    restore = store_weights(net, BF16, SIZE)
    layers = [module for module in net.modules() if type(module) in CAST]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert layers and all(dtypes(layer) == {torch.bfloat16} for layer in layers)
    assert all(dtypes(norm) == {torch.float32} for norm in norms)
    assert all(map(torch.equal, before, outputs(net, images)))
    restore()
    assert dtypes(net) == {torch.float32}
    assert all(torch.equal(value, weights[key]) for key, value in net.state_dict().items())


def test_without_autocast_nothing_changes():
    net = models.build("resnet8", num_classes=5)
    store_weights(net, torch.autocast("cpu", dtype=torch.bfloat16, enabled=False), SIZE)
    assert dtypes(net) == {torch.float32}


class Normalised(nn.Linear):
    """A subclass that computes with its weight before the product does."""

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.weight))


class Reader(nn.Module):
    """A module that reads the weight of its plain layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, x):
        return nn.functional.linear(x, nn.functional.normalize(self.linear.weight), self.linear.bias)


@pytest.mark.parametrize("kind", ["subclass", "hook", "shared", "reader"])
def test_weights_used_otherwise_stay(kind):
    torch.manual_seed(0)
    net = models.build("resnet8", num_classes=5)
    if kind == "subclass":
        net.head.fc = Normalised(64, 5)
    elif kind == "hook":
        net.head.fc.register_forward_pre_hook(lambda module, args: None)
    elif kind == "shared":
        net.other = Normalised(64, 5)
        net.other.weight = net.head.fc.weight
    else:
        net.head.fc = Reader(net.head.fc)
    weight = net.head.fc.linear.weight if kind == "reader" else net.head.fc.weight
    images = torch.randn(3, 3, SIZE, SIZE)
    before = outputs(net, images)
    store_weights(net, BF16, SIZE)
    assert weight.dtype == torch.float32
    assert (torch.bfloat16 in dtypes(net)) is (kind != "reader")  # which shows in the outputs alone: all stay
    assert all(map(torch.equal, before, outputs(net, images)))


def test_random_numbers_of_the_training_are_left_alone():
    net = models.build("resnet8", num_classes=5)
    net.head.fc = nn.Sequential(net.head.fc, Noise())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    store_weights(net, BF16, SIZE)
    assert torch.equal(torch.rand(1), expected)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_new_values_take_effect_and_outlast_the_restoration():
    torch.manual_seed(0)
    net, other = (models.build("resnet8", num_classes=5) for _ in range(2))
    images = torch.randn(3, 3, SIZE, SIZE)
    restore = store_weights(net, BF16, SIZE)
    net.load_state_dict(other.state_dict())
    assert all(map(torch.equal, outputs(net, images), outputs(other, images)))
    restore()
    fc = net.head.fc.weight
    assert torch.equal(fc, other.head.fc.weight.bfloat16().float())
    assert not torch.equal(fc, other.head.fc.weight)


def images():
    config = DataConfig("fake", train_size=4 * BATCH, image_size=SIZE)
    return data.build(config, seed=0, batch_size=BATCH, device="cpu")


def task_on(images):
    torch.manual_seed(7)
    student, teacher = (models.build(name, num_classes=images.num_classes) for name in ("resnet8", "resnet14"))
    distiller = distillers.build(
        "kd,at=10", student=student, teacher=teacher, num_samples=images.num_train, image_size=images.image_size
    )
    return DistillTask(student, distiller)


def train(task, images, folder, amp="bf16"):
    folder.mkdir(exist_ok=True)
    optim, engine = OptimConfig(lr=0.02, batch_size=BATCH), EngineConfig(device="cpu", amp=amp, log_every=1)
    fit(task, images, epochs=2, optim=optim, engine=engine, folder=folder, fingerprint={}, seed=1)
    return task.model.state_dict()


def assert_same(ours, theirs):
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_a_training_keeps_its_bits_and_the_teacher_its_dtype(tmp_path, monkeypatch):
    batches, seen = images(), set()
    task = task_on(batches)
    weights = copy.deepcopy(task.distiller.teacher.state_dict())
    before = TrainStep.__call__
    monkeypatch.setattr(
        TrainStep, "__call__", lambda self, *args: seen.add(len(dtypes(task.distiller.teacher))) or before(self, *args)
    )
    stored = train(task, batches, tmp_path / "stored")
    assert seen == {2}, "no step ran with weights in two dtypes"
    assert_same(task.distiller.teacher.state_dict(), weights)
    assert dtypes(task.distiller.teacher) == {torch.float32}
    monkeypatch.setattr(DistillTask, "store_frozen", lambda self, autocast: lambda: None)
    assert_same(train(task_on(batches), batches, tmp_path / "cast"), stored)


def test_a_resumed_training_keeps_its_bits(tmp_path):
    batches = images()
    whole = train(task_on(batches), batches, tmp_path / "whole")
    stopping = dataclasses.replace(batches, train=StoppingLoader(batches.train, 5, signal.SIGTERM))
    stopped = task_on(batches)
    with pytest.raises(Interrupted):
        train(stopped, stopping, tmp_path / "parts")
    assert dtypes(stopped.distiller.teacher) == {torch.float32}
    assert_same(train(task_on(batches), batches, tmp_path / "parts"), whole)


def test_a_teacher_whose_logits_are_kept_stays():
    task = task_on(images())
    task.distiller._logits = object()
    task.store_frozen(BF16)
    assert dtypes(task.distiller.teacher) == {torch.float32}


@pytest.mark.parametrize(
    ("choice", "device", "deterministic", "expected"),
    [
        ("auto", GPU, False, True),
        ("auto", GPU, True, False),
        ("auto", CPU, False, False),
        (True, GPU, True, True),
        (True, CPU, False, False),
        (False, GPU, False, False),
    ],
)
def test_when_cudnn_is_asked_to_search(choice, device, deterministic, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    assert uses_cudnn_benchmark(EngineConfig(cudnn_benchmark=choice), device) is expected


@pytest.mark.parametrize("before", [False, True])
def test_the_choice_holds_for_a_step_only(before, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    with cudnn_benchmark(not before):
        assert torch.backends.cudnn.benchmark is not before
    assert torch.backends.cudnn.benchmark is before


def test_a_step_computes_with_the_choice(monkeypatch):
    seen = []
    step = TrainStep.__new__(TrainStep)
    step._benchmark = True
    monkeypatch.setattr(TrainStep, "_train", lambda self, batch: seen.append(torch.backends.cudnn.benchmark))
    step._update(None)
    assert seen == [True]
