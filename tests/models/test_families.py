"""as_staged on each family of torchvision's classifiers: the right axes, or a refusal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sftn_fast import distillers, models

torchvision_models = pytest.importorskip("torchvision.models")

RESNET = (["layer1", "layer2", "layer3", "layer4"], "fc")
REGNET = ([f"trunk_output.block{i}" for i in (1, 2, 3, 4)], "fc")
SWIN = (["features.1", "features.3", "features.5", "features.7"], "head")
NO_AUX = {"aux_logits": False, "init_weights": False}

# Modules to cut after, and the shapes of their maps for images of 64 pixels, or of 224 for LARGE.
FAMILIES = {
    "alexnet": (["features.2", "features.5", "features.12"], "classifier", [(64, 7), (192, 3), (256, 1)]),
    "convnext_tiny": (SWIN[0], "classifier", [(96, 16), (192, 8), (384, 4), (768, 2)]),
    "densenet121": (
        [f"features.denseblock{i}" for i in (1, 2, 3, 4)],
        "classifier",
        [(256, 16), (512, 8), (1024, 4), (1024, 2)],
    ),
    "efficientnet_b0": (
        ["features.2", "features.3", "features.5", "features.7"],
        "classifier",
        [(24, 16), (40, 8), (112, 4), (320, 2)],
    ),
    "googlenet": (["inception3b", "inception4e", "inception5b"], "fc", [(480, 8), (832, 4), (1024, 2)]),
    "inception_v3": (["Mixed_5d", "Mixed_6e", "Mixed_7c"], "fc", [(288, 25), (768, 12), (2048, 5)]),
    "maxvit_t": ([f"blocks.{i}" for i in range(4)], "classifier", [(64, 56), (128, 28), (256, 14), (512, 7)]),
    "mnasnet0_5": (
        ["layers.8", "layers.9", "layers.11", "layers.13"],
        "classifier",
        [(16, 16), (24, 8), (48, 4), (160, 2)],
    ),
    "mobilenet_v3_small": (
        ["features.1", "features.3", "features.8", "features.11"],
        "classifier",
        [(16, 16), (24, 8), (48, 4), (96, 2)],
    ),
    "mobilenet_v2": (
        ["features.3", "features.6", "features.13", "features.17"],
        "classifier",
        [(24, 16), (32, 8), (96, 4), (320, 2)],
    ),
    "regnet_y_400mf": (*REGNET, [(48, 16), (104, 8), (208, 4), (440, 2)]),
    "resnet18": (*RESNET, [(64, 16), (128, 8), (256, 4), (512, 2)]),
    "resnext50_32x4d": (*RESNET, [(256, 16), (512, 8), (1024, 4), (2048, 2)]),
    "shufflenet_v2_x0_5": (["stage2", "stage3", "stage4"], "fc", [(48, 8), (96, 4), (192, 2)]),
    "squeezenet1_1": (["features.4", "features.7", "features.12"], "classifier", [(128, 15), (256, 7), (512, 3)]),
    "swin_t": (*SWIN, [(96, 16), (192, 8), (384, 4), (768, 2)]),
    "swin_v2_t": (*SWIN, [(96, 16), (192, 8), (384, 4), (768, 2)]),
    "vgg11_bn": (["features.7", "features.14", "features.28"], "classifier", [(128, 16), (256, 8), (512, 2)]),
    "wide_resnet50_2": (*RESNET, [(256, 16), (512, 8), (1024, 4), (2048, 2)]),
}
LARGE = {"inception_v3", "maxvit_t"}  # networks that do not accept 64 pixels


def network(name: str, device: str = "meta") -> nn.Module:
    options = NO_AUX if name in ("googlenet", "inception_v3") else {}
    with torch.device("cpu" if name.startswith("regnet") else device):  # RegNet computes its widths with tensors
        return torchvision_models.get_model(name, weights=None, num_classes=7, **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_channels_are_the_first_axis_of_every_map(name):
    stages, head, maps = FAMILIES[name]
    module = network(name)
    modes = [each.training for each in module.modules()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    net = models.as_staged(module, stages, head)
    size = 224 if name in LARGE else 64
    assert net.feature_shapes(size) == [(channels, side, side) for channels, side in maps]
    assert net.num_classes == 7
    assert torch.equal(random, torch.get_rng_state())
    assert [each.training for each in module.modules()] == modes


@pytest.mark.parametrize("mode", [True, False])
def test_swin_computes_what_it_did(mode):
    torch.manual_seed(0)
    module = torchvision_models.SwinTransformer([4, 4], 16, [2, 2], [1, 2], [4, 4], num_classes=7).train(mode)
    net = models.as_staged(module, ["features.1", "features.3"], "head")
    x = torch.randn(2, 3, 32, 48)
    torch.manual_seed(1)
    expected = module(x)
    torch.manual_seed(1)
    seen = net.forward_features(x)
    assert torch.equal(seen.logits, expected)
    assert [tuple(map_.shape) for map_ in (seen.stem, *seen.stages)] == [(2, 16, 8, 12), (2, 16, 8, 12), (2, 32, 4, 6)]
    if not mode:
        for i, taken in enumerate((seen.stem, *seen.stages), start=1):
            assert torch.equal(net.forward_from(i, taken), expected)
            assert torch.equal(net.tail(i)(taken), expected)
    student = models.build("resnet8", num_classes=7)
    distiller = distillers.build("kd=1,at=1,vid=1", student=student, teacher=net, num_samples=8, image_size=32)
    terms = distiller(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4))
    assert torch.isfinite(terms["total"])


def vit() -> nn.Module:
    return torchvision_models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=7)


def test_tokens_are_refused_with_what_works():
    stages = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    with pytest.raises(ValueError, match=r"gives tokens \[N, 17, 16\] and no map.*as_staged\(nn.Sequential") as caught:
        models.as_staged(vit(), stages, "heads", stem="encoder.dropout")
    assert "\n" not in str(caught.value)
    # The line of the message:
    net = vit()
    teacher = models.as_staged(nn.Sequential(nn.Identity(), net), ["0"], head="1")
    assert teacher.num_classes == 7
    student = models.build("resnet8", num_classes=7)
    distiller = distillers.build("kd=1", student=student, teacher=teacher, num_samples=8, image_size=32)
    assert torch.isfinite(distiller(torch.randn(4, 3, 32, 32), torch.arange(4), torch.arange(4))["total"])


class Last(nn.Module):
    """A stage with maps [N, H, W, C]."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)

    def forward(self, x):
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Classifier(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, 7)

    def forward(self, x):
        return self.fc(x.mean((1, 2)))


class To(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(*self.axes)


class OneSize(nn.Module):
    """Accepts images of 32 pixels only."""

    def forward(self, x):
        if x.shape[2:] != (32, 32):
            raise ValueError("32 pixels")
        return x


class Looking(nn.Module):
    """Reads values, which tensors on the meta device don't have."""

    def forward(self, x):
        return x if x.sum() > -1e9 else -x


@pytest.mark.parametrize("first", [nn.Identity, OneSize, Looking])
def test_maps_as_wide_as_they_have_channels(first):
    """Find the axes of 16 channels of 16 x 16 pixels, which one shape alone does not show."""
    torch.manual_seed(0)
    module = nn.Sequential(first(), To(0, 2, 3, 1), Last(3, 8, 2), Last(8, 16, 2), Classifier(16)).eval()
    net = models.as_staged(module, ["2", "3"], "4")
    assert net.feature_shapes(32) == [(8, 16, 16), (16, 8, 8)]
    x = torch.randn(2, 3, 32, 32)
    seen = net.forward_features(x)
    expected = module[3](module[2](module[1](x)))
    assert torch.equal(seen.stages[1], expected.permute(0, 3, 1, 2))
    assert torch.equal(seen.logits, module(x))


def test_what_nobody_can_tell_is_refused():
    module = nn.Sequential(OneSize(), To(0, 2, 3, 1), Last(3, 16, 2), Last(16, 8, 2), Classifier(8))
    with pytest.raises(ValueError, match=r"'2' gives \[N, 16, 16, 16\] for images of 32 x 32, and it is unclear"):
        models.as_staged(module, ["2", "3"], "4")


@pytest.mark.parametrize(("last", "shown"), [(nn.Flatten(), "N, 1536"), (nn.Unflatten(1, (1, 4)), "N, 1, 4, 16, 24")])
def test_what_is_no_map_is_refused(last, shown):
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), last, nn.LazyLinear(7))
    with pytest.raises(ValueError, match=rf"'1' gives \[{shown}\] and no map \[N, C, H, W\]"):
        models.as_staged(module, ["0", "1"], "2", num_classes=7)
