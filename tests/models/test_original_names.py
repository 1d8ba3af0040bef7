"""Export of weights under the names of the project or module that a network comes from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sftn_fast import models
from sftn_fast.models.imagenet import CUTS


@pytest.mark.parametrize("name", models.names())
def test_the_loader_understands_what_is_exported(name, tmp_path):
    if name in CUTS:
        pytest.importorskip("torchvision")
    with torch.device("meta"):
        net = models.build(name, num_classes=5)
    exported = models.export_state_dict(net.to_empty(device="cpu"))
    own = net.state_dict()
    assert len(exported) == len(own)
    assert exported.keys() != own.keys()
    assert {net.own_name(key): tensor.shape for key, tensor in exported.items()} == {k: t.shape for k, t in own.items()}


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "MobileNetV2", "ShuffleV2"])
def test_round_trip(name, tmp_path):
    torch.manual_seed(0)
    net = models.build(name, num_classes=5)
    torch.save({"model": models.export_state_dict(net, "repdistiller")}, tmp_path / "student.pth")
    again = models.load(tmp_path / "student.pth", name=name, num_classes=5)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in again.state_dict().items())
    own = models.export_state_dict(net, "own")
    assert own.keys() == net.state_dict().keys()
    own["head.fc.bias"].zero_().add_(3)  # a copy
    assert not (net.state_dict()["head.fc.bias"] == 3).any()


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_torchvisions_classes_load_it(name):
    torchvision_models = pytest.importorskip("torchvision.models")
    net = models.build(name, num_classes=5).eval()
    theirs = torchvision_models.get_model(name, weights=None, num_classes=5).eval()
    theirs.load_state_dict(models.export_state_dict(net, "torchvision"))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(theirs(x), net(x))


def test_a_users_own_module_loads_it():
    def own():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))

    net = models.as_staged(own(), ["1", "2"], "4").eval()
    module = own().eval()
    module.load_state_dict(models.export_state_dict(net))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), net(x))


@pytest.mark.parametrize(
    ("name", "style", "message"),
    [
        (
            "resnet8",
            "torchvision",
            "resnet8 is no network of torchvision: its styles are 'original', 'own', 'repdistiller'",
        ),
        ("MobileNetV1", "repdistiller", "MobileNetV1 is no network of repdistiller"),
        ("resnet8", "keras", "unknown style 'keras'; known are original, own, repdistiller"),
    ],
)
def test_names_of_another_project_are_refused(name, style, message):
    with pytest.raises(ValueError, match=message):
        models.export_state_dict(models.build(name), style)
