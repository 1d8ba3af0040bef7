"""Every network against the sizes published with RepDistiller, over image sizes, classes and channels."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from networks import blank
from torch import nn

from sftn_fast import models
from sftn_fast.models import imagenet, registry

R, R4 = ((16, 32), (16, 32), (32, 16), (64, 8)), ((32, 32), (64, 32), (128, 16), (256, 8))
W2 = ((16, 32), (32, 32), (64, 16), (128, 8))
V = ((64, 32), (128, 16), (256, 8), (512, 4), (512, 4))
# Parameters at 100 classes; (channels, size) of stem and stages at 32 pixels; width of the pooled vector; widths of the
# BatchNorms before the stages' ReLUs, None where there are none.
ZOO = {
    "resnet8": (83_892, R, 64, (16, 32, 64)),
    "resnet14": (181_108, R, 64, (16, 32, 64)),
    "resnet20": (278_324, R, 64, (16, 32, 64)),
    "resnet32": (472_756, R, 64, (16, 32, 64)),
    "resnet44": (667_188, R, 64, (16, 32, 64)),
    "resnet56": (861_620, R, 64, (16, 32, 64)),
    "resnet110": (1_736_564, R, 64, (16, 32, 64)),
    "resnet8x4": (1_233_540, R4, 256, (64, 128, 256)),
    "resnet32x4": (7_433_860, R4, 256, (64, 128, 256)),
    "ResNet50": (
        23_705_252,
        ((64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)),
        2048,
        (256, 512, 1024, 2048),
    ),
    "ResNet18": (11_220_132, ((64, 32), (64, 32), (128, 16), (256, 8), (512, 4)), 512, (64, 128, 256, 512)),
    "MobileNetV1": (
        3_309_476,
        ((32, 16), (128, 8), (256, 4), (512, 2), (1024, 1)),
        1024,
        (128, 256, 512, 1024),
    ),
    "wrn_16_1": (180_916, R, 64, (16, 32, 64)),
    "wrn_16_2": (703_284, W2, 128, (32, 64, 128)),
    "wrn_40_1": (569_780, R, 64, (16, 32, 64)),
    "wrn_40_2": (2_255_156, W2, 128, (32, 64, 128)),
    "vgg8": (3_965_028, V, 512, (128, 256, 512, 512)),
    "vgg11": (9_277_284, V, 512, (128, 256, 512, 512)),
    "vgg13": (9_462_180, V, 512, (128, 256, 512, 512)),
    "vgg16": (14_774_436, V, 512, (128, 256, 512, 512)),
    "vgg19": (20_086_692, V, 512, (128, 256, 512, 512)),
    "MobileNetV2": (812_836, ((16, 16), (12, 16), (16, 8), (48, 4), (160, 2)), 1280, (12, 16, 48, 160)),
    "ShuffleV1": (949_258, ((24, 32), (240, 16), (480, 8), (960, 4)), 960, (240, 480, 960)),
    "ShuffleV2": (1_355_528, ((24, 32), (116, 16), (232, 8), (464, 4)), 1024, None),
}
LIGHT = {"MobileNetV2", "ShuffleV1", "ShuffleV2"}
IMAGENET = set(imagenet.CUTS)  # see test_imagenet.py


@functools.cache
def on_meta(name: str) -> models.StagedNet:
    with torch.device("meta"):
        return models.build(name)


def test_all_networks_are_listed():
    assert set(models.names()) == set(ZOO) | IMAGENET


@pytest.mark.parametrize("name", ZOO)
def test_sizes(name):
    count, maps, width, norms = ZOO[name]
    net = blank(name)
    net.probe = functools.cache(net.probe)  # one probe for all shapes
    assert sum(p.numel() for p in net.parameters()) == count
    assert (net.name, net.num_classes, net.in_channels, net.num_stages) == (name, 100, 3, len(maps) - 1)
    shapes = [(channels, size, size) for channels, size in maps]
    assert net.feature_shapes(32) == shapes[1:]
    assert [net.input_shape(i, 32) for i in range(1, net.num_stages + 2)] == shapes

    with torch.no_grad():
        seen = net.forward_features(torch.zeros(2, 3, 32, 32), preact=True)
    assert [tuple(m.shape) for m in (seen.stem, *seen.stages)] == [(2, *s) for s in shapes]
    assert [p.shape for p in seen.preacts] == [s.shape for s in seen.stages]
    assert seen.pooled.shape == (2, width)
    assert seen.logits.shape == (2, 100)
    if norms is None:
        with pytest.raises(ValueError, match="no BatchNorm"):
            net.preact_norms()
    else:
        found = net.preact_norms()
        assert all(isinstance(norm, nn.BatchNorm2d) for norm in found)
        assert tuple(norm.num_features for norm in found) == norms


DEEPER = {*(f"resnet{depth}" for depth in (14, 20, 32, 44, 56, 110)), "resnet32x4", "wrn_40_1", "wrn_40_2", "vgg16"}
DEEPER |= {"vgg11", "vgg19"}
"""Networks that differ from another one in the number of its blocks, which change no size."""


@pytest.mark.parametrize("name", [name for name in ZOO if name not in DEEPER])
@pytest.mark.parametrize(("classes", "channels", "sizes"), [(2, 1, (8, 28, 64)), (1000, 3, (9, 16, 48))])
@torch.no_grad()
def test_image_sizes_classes_and_channels(name, classes, channels, sizes):
    net = blank(name, num_classes=classes, in_channels=channels)
    for size in sizes:
        # In training mode, where BatchNorm refuses a map of one pixel in a batch of one.
        seen = net.forward_features(torch.zeros(2, channels, size, size))
        assert seen.logits.shape == (2, classes)
        widths = [m.shape[-1] for m in (seen.stem, *seen.stages)]
        assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("size", "expected"), [(8, (4, 2, 1, 1)), (32, (16, 8, 4, 4)), (48, (24, 12, 6, 6)), (64, (32, 16, 8, 4))]
)
def test_vgg_pools_a_fourth_time_for_64_pixels_only(size, expected):
    assert tuple(shape[-1] for shape in on_meta("vgg8").feature_shapes(size)) == expected


@pytest.mark.parametrize("name", ZOO)
def test_default_learning_rate(name):
    expected = {**dict.fromkeys(LIGHT, 0.01), "MobileNetV1": 0.1}.get(name, 0.05)
    assert on_meta(name).default_lr == expected


def test_same_seed_same_parameters():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in models.build("resnet8").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["resnet8x4", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_convolutions_start_with_variance_2_over_fan_out(name):
    torch.manual_seed(0)
    for module in models.build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.kernel_size[0] ** 2 * module.out_channels
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize(("name", "std"), [("vgg8", 0.01), ("MobileNetV2", 0.01), ("wrn_16_2", 3**-0.5 * 128**-0.5)])
def test_classifier_starts_small(name, std):
    torch.manual_seed(0)
    classifier = models.build(name).head.fc
    assert classifier.weight.std().item() == pytest.approx(std, rel=0.05)
    assert not classifier.bias.any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet9", r"unknown network 'resnet9' \(did you mean resnet8"),
        ("RESNET50", "did you mean ResNet50 or resnet50"),
        ("alexnet", "vgg19"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, message):
    with pytest.raises(ValueError, match=message):
        models.build(name)


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"in_channels": 0}, {"num_classes": -3}])
def test_counts_below_one_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1"):
        models.build("resnet8", **options)


def test_users_register_networks_of_their_own(monkeypatch):
    monkeypatch.setattr(registry, "_factories", dict(registry._factories))

    @models.register("tiny")
    def tiny(*, num_classes, in_channels):
        stem, head = nn.Conv2d(in_channels, 4, 3), models.staged.Head(4, num_classes)
        return models.StagedNet(stem, [nn.Identity()], head, num_classes=num_classes, in_channels=in_channels)

    net = models.build("tiny", num_classes=5, in_channels=1)
    assert net.name == "tiny"
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(ValueError, match="registered already"):
        models.register("tiny")(tiny)


# Names of layers in RepDistiller's networks, in which `n:` stands for a BatchNorm and `b:` for a layer with a bias.
def _blocks(prefix, depths, parts, first=()):
    for stage, depth in enumerate(depths):
        for block in range(depth):
            for part in (*parts, *(first if block == 0 else ())):
                kind, _, layer = part.rpartition(":")
                yield f"{kind}:{prefix.format(stage + 1)}.{block}.{layer}"


def _resnet(depths, norms, shortcuts, classifier, shortcut="downsample"):
    parts = [p for i in range(1, norms + 1) for p in (f":conv{i}", f"n:bn{i}")]
    layers = ["conv1", "n:bn1", f"b:{classifier}", *_blocks("layer{}", depths, parts)]
    for stage in shortcuts:
        layers += [f":layer{stage}.0.{shortcut}.0", f"n:layer{stage}.0.{shortcut}.1"]
    return layers


def _wrn(depth, grows):
    parts = ("n:bn1", ":conv1", "n:bn2", ":conv2")
    layers = ["conv1", "n:bn1", "b:fc", *_blocks("block{}.layer", (depth,) * 3, parts)]
    return layers + [f":block{stage}.layer.0.convShortcut" for stage in grows]


def _vgg(depths):
    layers = ["b:classifier"]
    for stage, depth in enumerate(depths):
        for i in range(depth):
            layers += [f"b:block{stage}.{3 * i}", f"n:block{stage}.{3 * i + 1}"]
    return layers


def _mobile():
    layers = ["conv1.0", "n:conv1.1", "conv2.0", "n:conv2.1", "b:classifier.0"]
    for row, depth in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(depth):
            for i, kind in ((0, ""), (1, "n"), (3, ""), (4, "n"), (6, ""), (7, "n")):
                layers.append(f"{kind}:blocks.{row}.{block}.conv.{i}")
    return layers


def _shuffle_v1():
    parts = (":conv1", "n:bn1", ":conv2", "n:bn2", ":conv3", "n:bn3")
    return ["conv1", "n:bn1", "b:linear", *_blocks("layer{}", (4, 8, 4), parts)]


def _shuffle_v2():
    parts = (":conv1", "n:bn1", ":conv2", "n:bn2", ":conv3", "n:bn3")
    first = (":conv4", "n:bn4", ":conv5", "n:bn5")
    return ["conv1", "n:bn1", "conv2", "n:bn2", "b:linear", *_blocks("layer{}", (4, 8, 4), parts, first)]


def _mobile_v1():
    layers = ["model.0.0", "n:model.0.1", "b:fc"]
    for block in range(1, 14):
        layers += [f"model.{block}.0", f"n:model.{block}.1", f"model.{block}.3", f"n:model.{block}.4"]
    return layers


REPDISTILLER = {
    "resnet8": _resnet((1, 1, 1), 2, (2, 3), "fc"),
    "resnet110": _resnet((18, 18, 18), 2, (2, 3), "fc"),
    "resnet32x4": _resnet((5, 5, 5), 2, (1, 2, 3), "fc"),
    "ResNet50": _resnet((3, 4, 6, 3), 3, (1, 2, 3, 4), "linear", "shortcut"),
    "ResNet18": _resnet((2, 2, 2, 2), 2, (2, 3, 4), "linear", "shortcut"),
    "MobileNetV1": _mobile_v1(),
    "wrn_16_1": _wrn(2, (2, 3)),
    "wrn_40_2": _wrn(6, (1, 2, 3)),
    "vgg8": _vgg((1, 1, 1, 1, 1)),
    "vgg19": _vgg((2, 2, 4, 4, 4)),
    "MobileNetV2": _mobile(),
    "ShuffleV1": _shuffle_v1(),
    "ShuffleV2": _shuffle_v2(),
}


@pytest.mark.parametrize("name", REPDISTILLER)
def test_names_in_repdistiller_checkpoints_are_known(name):
    tensors = {
        "": ("weight",),
        "b": ("weight", "bias"),
        "n": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    }
    theirs = []
    for layer in REPDISTILLER[name]:
        kind, _, path = layer.rpartition(":")
        theirs += [f"{path}.{tensor}" for tensor in tensors[kind]]
    net = on_meta(name)
    translated = []
    for own in theirs:
        for pattern, replacement in net.foreign_names:
            own = re.sub(pattern, replacement, own)
        translated.append(own)
    assert sorted(translated) == sorted(net.state_dict())
    assert sorted(models.export_state_dict(blank(name))) == sorted(theirs)
