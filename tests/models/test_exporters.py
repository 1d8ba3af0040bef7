"""Networks in the tools that deploy them: TorchScript, torch.fx, quantisation. `tests/deploy` has the other formats."""

from __future__ import annotations

import pytest
import torch
from networks import blank, build
from shallow import make_shallow
from torch import fx, nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.functional import channel_shuffle

from sftn_fast import distillers, models
from sftn_fast.models.imagenet import CUTS
from sftn_fast.models.layers import shuffle_channels

SMALLEST = ["resnet8", "ResNet18", "wrn_16_1", "vgg8", "MobileNetV1", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
SMALLEST += ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"]
"""One of each family."""


def script(net: nn.Module, x: torch.Tensor) -> nn.Module:
    return torch.jit.script(net)


def trace(net: nn.Module, x: torch.Tensor) -> nn.Module:
    return torch.jit.trace(net, (x,), check_trace=False)  # the test itself compares the results


@pytest.fixture
def shallow(monkeypatch):
    make_shallow(monkeypatch)


@pytest.mark.parametrize(
    ("way", "name"), [*((script, name) for name in SMALLEST), (trace, "resnet18"), (trace, "mobilenet_v2")]
)
@pytest.mark.usefixtures("shallow")
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, but still used
def test_every_family(way, name):
    """The other families are traced by `tests/deploy/test_export_formats.py`."""
    net, x = build(name).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(way(net, x)(x), net(x))


@pytest.mark.parametrize("name", [*SMALLEST, "resnet8x4", "wrn_16_2", "vgg13", "ResNet50", "resnet50"])
@torch.no_grad()
def test_every_kind_of_network_can_be_traced_symbolically(name):
    """Networks of other depths have the same blocks."""
    if name in CUTS:
        pytest.importorskip("torchvision")
    graph = fx.symbolic_trace(blank(name, num_classes=7)).eval()
    assert graph(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    for size in (8, 33):  # code that depends on the size must not be a constant of the trace
        assert graph(torch.zeros(1, 3, size, size)).shape == (1, 7)


@pytest.mark.parametrize("name", ["vgg8", "wrn_16_1", "ShuffleV2"])
@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_quantisation_after_training(name):
    net, x = build(name).eval(), torch.randn(8, 3, 32, 32)
    prepared = prepare_fx(net, quantization.get_default_qconfig_mapping("fbgemm"), (x,))
    prepared(x)
    quantised, expected = convert_fx(prepared), net(x)
    assert any(type(module).__module__.startswith("torch.ao.nn") for module in quantised.modules())
    assert (quantised(x) - expected).norm() < 0.2 * expected.norm()


@pytest.mark.filterwarnings("ignore")
def test_a_student_that_learns_to_be_quantised():
    torch.manual_seed(0)
    student, teacher = models.build("vgg8", num_classes=5).train(), models.build("vgg8", num_classes=5)
    student.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    quantization.prepare_qat(student, inplace=True)
    distiller = distillers.build("kd=1,at=1", student=student, teacher=teacher, num_samples=8, image_size=16)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        distiller(torch.randn(4, 3, 16, 16), torch.arange(4), torch.arange(4))["total"].backward()
        optimizer.step()
    observed = [module for module in student.modules() if isinstance(module, quantization.FakeQuantizeBase)]
    assert observed
    assert all(torch.isfinite(module.scale).all() for module in observed)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("groups", "channels"), [(1, 4), (2, 6), (3, 12)])
def test_shuffled_channels(groups, channels, memory):
    x = torch.randn(2, channels, 3, 5).contiguous(memory_format=memory)
    shuffled = shuffle_channels(x, groups)
    assert torch.equal(shuffled, channel_shuffle(x, groups))
    assert shuffled.is_contiguous(memory_format=memory)
