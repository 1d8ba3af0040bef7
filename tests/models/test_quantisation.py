"""Students that learn to be quantised on PyTorch's traced graphs: distilled, resumed, converted to 8-bit integers."""

from __future__ import annotations

import copy
import dataclasses
import signal
from pathlib import Path

import pytest
import torch
from engine.stubs import StoppingLoader
from torch import Tensor, fx, nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from sftn_fast import data, distillers, models
from sftn_fast.config import DataConfig, EngineConfig, OptimConfig
from sftn_fast.engine import Interrupted, fit
from sftn_fast.tasks import DistillTask

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch has deprecated this part, but still has it
CLASSES, SIZE, BATCH = 10, 8, 8


def block(channels: int, width: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU())


class Small(nn.Module):
    """A user's own network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = block(3, 8, 1), block(8, 8, 2), block(8, 16, 2)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.two(self.one(self.stem(x))).mean((2, 3)))


def prepared() -> fx.GraphModule:
    mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
    return prepare_qat_fx(Small().train(), mapping, (torch.randn(1, 3, SIZE, SIZE),))


def staged(graph: fx.GraphModule) -> models.StagedNet:
    """The traced graph keeps one module of each block, in which the others are fused."""
    return models.as_staged(graph, stages=["one.0", "two.0"], head="fc")


def distilled(graph: fx.GraphModule, images: data.ImageData, folder: Path) -> None:
    """Train in ``folder``, or resume there."""
    torch.manual_seed(7)  # the teacher, which is in no checkpoint
    teacher, student = models.build("resnet8", num_classes=images.num_classes), staged(graph)
    with torch.no_grad():
        teacher(torch.randn(16, 3, SIZE, SIZE))
    options = {"num_samples": images.num_train, "image_size": SIZE}
    distiller = distillers.build("kd=1,at=10,hint=0.1", student=student, teacher=teacher.eval(), **options)
    task = DistillTask(student, distiller)
    folder.mkdir(exist_ok=True)
    optim, engine = OptimConfig(lr=0.02, batch_size=BATCH), EngineConfig(device="cpu")
    fit(task, images, epochs=1, optim=optim, engine=engine, folder=folder, fingerprint={}, seed=1)


def test_a_traced_student_is_distilled_resumed_and_converted(tmp_path):
    torch.manual_seed(0)
    config = DataConfig("fake", train_size=4 * BATCH, image_size=SIZE)
    images = data.build(config, seed=0, batch_size=BATCH, device="cpu")
    graph = prepared()
    twin = copy.deepcopy(graph)
    distilled(graph, images, tmp_path / "unbroken")
    stopping = dataclasses.replace(images, train=StoppingLoader(images.train, 2, signal.SIGTERM))
    with pytest.raises(Interrupted):
        distilled(copy.deepcopy(twin), stopping, tmp_path / "broken")
    distilled(twin, images, tmp_path / "broken")
    states = graph.state_dict(), twin.state_dict()
    assert states[0].keys() == states[1].keys() and any(name.endswith("min_val") for name in states[0])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())

    models.save(staged(graph), tmp_path / "student")
    models.load_weights(staged(loaded := prepared()), tmp_path / "student")
    batch = next(iter(images.test)).images
    graph.eval().apply(quantization.disable_observer)
    integers = convert_fx(loaded.eval().apply(quantization.disable_observer))
    assert any(type(module).__module__.startswith("torch.ao.nn.intrinsic.quantized") for module in integers.modules())
    with torch.no_grad():
        simulated, exact = graph(batch), integers(batch)
    assert (simulated - exact).norm() < 0.1 * simulated.norm()


def test_a_graph_as_it_is_is_refused_in_one_line():
    teacher = models.build("resnet8", num_classes=CLASSES)
    with pytest.raises(TypeError, match=r"must be a StagedNet, got GraphModule: models\.as_staged makes one"):
        distillers.build("kd", student=prepared(), teacher=teacher, num_samples=8, image_size=SIZE)


def test_a_map_before_its_relu_is_refused_in_one_line():
    teacher = models.build("resnet8", num_classes=CLASSES)
    distiller = distillers.build("oh", student=staged(prepared()), teacher=teacher, num_samples=8, image_size=SIZE)
    with pytest.raises(ValueError, match="has no pre-activations: its stages do not give their maps from before"):
        distiller(torch.randn(4, 3, SIZE, SIZE), torch.arange(4), torch.arange(4))
