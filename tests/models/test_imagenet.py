"""torchvision's networks as staged ones: the same networks, cut into stages."""

from __future__ import annotations

import functools
import sys

import pytest
import torch
from networks import blank
from torch import nn

from sftn_fast import distillers, models, train
from sftn_fast.models import imagenet
from sftn_fast.sftn import StudentAwareTeacher

torchvision_models = pytest.importorskip("torchvision.models")

BASIC = ((64, 56), (64, 56), (128, 28), (256, 14), (512, 7))
BOTTLENECK = ((64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7))


def shuffle(*widths):
    return ((24, 56), *zip(widths, (28, 14, 7), strict=True))


# (channels, size) of stem and stages at 224 pixels; length of the pooled vector; widths of the BatchNorms.
NETWORKS = {
    **dict.fromkeys(("resnet18", "resnet34"), (BASIC, 512, [64, 128, 256, 512])),
    **dict.fromkeys(("resnet50", "resnet101"), (BOTTLENECK, 2048, [256, 512, 1024, 2048])),
    **dict.fromkeys(("resnext50_32x4d", "wide_resnet50_2"), (BOTTLENECK, 2048, [256, 512, 1024, 2048])),
    "mobilenet_v2": (((32, 112), (24, 56), (32, 28), (96, 14), (320, 7)), 1280, [24, 32, 96, 320]),
    "shufflenet_v2_x0_5": (shuffle(48, 96, 192), 1024, None),
    "shufflenet_v2_x1_0": (shuffle(116, 232, 464), 1024, None),
    "shufflenet_v2_x1_5": (shuffle(176, 352, 704), 1024, None),
    "shufflenet_v2_x2_0": (shuffle(244, 488, 976), 2048, None),
}
FAMILIES = ["resnet18", "resnet50", "mobilenet_v2", "shufflenet_v2_x0_5"]


def test_all_are_listed():
    assert NETWORKS.keys() == imagenet.CUTS.keys()


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes(name):
    maps, width, norms = NETWORKS[name]
    with torch.device("meta"):
        net = models.build(name, num_classes=1000).eval()
    net.probe = functools.cache(net.probe)
    published = torchvision_models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert sum(p.numel() for p in net.parameters()) == published
    assert (net.name, net.num_classes, net.in_channels, net.default_lr) == (name, 1000, 3, 0.1)
    shapes = [(channels, size, size) for channels, size in maps]
    assert [net.input_shape(1, 224), *net.feature_shapes(224)] == shapes

    seen = net.forward_features(torch.empty(2, 3, 224, 224, device="meta"), preact=True)
    assert [tuple(m.shape) for m in seen.preacts] == [(2, *s) for s in shapes[1:]]
    assert (seen.pooled.shape, seen.logits.shape) == ((2, width), (2, 1000))
    widths = [channels for channels, _ in maps[1:]]
    assert [scale.numel() for scale, _ in net.preact_affines()] == widths
    if norms is None:
        with pytest.raises(ValueError, match="no BatchNorm writes a whole pre-activation"):
            net.preact_norms()
    else:
        assert [norm.num_features for norm in net.preact_norms()] == norms


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("classes", "channels", "sizes"), [(200, 3, (64, 96)), (2, 1, (8, 9))])
@torch.no_grad()
def test_small_images(name, classes, channels, sizes):
    net = blank(name, num_classes=classes, in_channels=channels)
    for size in sizes:
        seen = net.forward_features(torch.zeros(2, channels, size, size), preact=True)
        assert seen.logits.shape == (2, classes)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("mode", [True, False])
def test_it_is_torchvisions_network(name, mode):
    """Give the same parameters for the same seed, and the same bits in a pass, statistics included."""
    torch.manual_seed(0)
    original = torchvision_models.get_model(name, weights=None, num_classes=5).train(mode)
    torch.manual_seed(0)
    net = models.build(name, num_classes=5).train(mode)
    x = torch.randn(2, 3, 33, 33)
    logits = []
    for network in (original, net):
        torch.manual_seed(1)  # dropout
        logits.append(network(x))
    assert torch.equal(*logits)
    theirs = {net.own_name(key): value for key, value in original.state_dict().items()}
    assert theirs.keys() == net.state_dict().keys()
    assert all(torch.equal(theirs[key], value) for key, value in net.state_dict().items())


def test_a_stage_of_a_shufflenet_has_margins_for_the_half_that_is_convolved():
    net = models.build("shufflenet_v2_x0_5", num_classes=5)
    norm = net.stages[1][-1].half_norm()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    scale, shift = net.preact_affines()[1]
    assert torch.equal(scale, torch.cat([torch.zeros(48), norm.weight.detach()]))
    assert torch.equal(shift, torch.cat([torch.zeros(48), norm.bias.detach()]))


@pytest.mark.parametrize(("teacher", "student"), [("resnet18", "shufflenet_v2_x0_5"), ("mobilenet_v2", "resnet18")])
def test_student_friendly_teacher_and_distillation(teacher, student):
    networks = [models.build(name, num_classes=5) for name in (teacher, student)]
    aware = StudentAwareTeacher(*networks, image_size=64)
    x = torch.randn(2, 3, 64, 64)
    logits, branches = aware(x)
    (logits.sum() + sum(branch.square().sum() for branch in branches)).backward()
    assert [key for key, p in aware.named_parameters() if p.grad is None] == []

    build = distillers.build
    distiller = build("oh=1e-4,ab,at,kd", student=networks[1], teacher=networks[0], num_samples=2, image_size=64)
    terms = distiller(x, torch.tensor([0, 1]), torch.arange(2))
    terms["total"].backward()
    assert {"oh", "at", "kd"} <= terms.keys()
    assert all(term.isfinite() for term in terms.values())
    assert [key for key, p in networks[1].named_parameters() if p.grad is None] == []


def test_without_torchvision_they_are_named_but_not_built(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert "resnet18" in models.names()
    with pytest.raises(ModuleNotFoundError, match=r"resnet18.* are torchvision's.*pip install torch==.* torchvision"):
        models.build("resnet18")
    options = ["--student", "resnet18", "--data.name", "fake", "--output", str(tmp_path / "run")]
    assert train.main(options) == 2
    assert capsys.readouterr().err.startswith("error: student: the networks resnet18")
    assert not (tmp_path / "run").exists()
