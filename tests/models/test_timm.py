"""timm's networks as staged ones: the same networks, with maps along the right axes."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from sftn_fast import models
from sftn_fast.models.timm_networks import Described, choose_stages, layout_of
from sftn_fast.utils import timm_names
from sftn_fast.utils.checksummed import seal

timm = pytest.importorskip("timm")

SIZE = 64
SWIN = "swin_tiny_patch4_window7_224:embed_dim=16:depths=[1,1,1,1]:num_heads=[1,1,2,2]:window_size=4"
EVA = "eva02_tiny_patch14_224:embed_dim=32:depth=4:num_heads=2:patch_size=8"
DISTILLED = "deit_tiny_distilled_patch16_224:embed_dim=24:depth=4:num_heads=2"
PYRAMID = [(16, 16), (8, 8), (4, 4), (2, 2)]
GRID = [(4, 4)] * 4

# Sizes of the stages' maps at 64 pixels, and whether the stages after one run on its map alone.
NETWORKS = {
    "test_resnet": (PYRAMID, True),
    "test_convnext": (PYRAMID, True),
    "test_efficientnet": (PYRAMID, True),
    "mobilenetv4_conv_small_035": (PYRAMID, True),
    "regnetx_002": (PYRAMID, True),
    SWIN: (PYRAMID, True),  # maps [N, H, W, C] inside
    "test_vit_relpos": (GRID, True),  # tokens without a class token inside
    "test_vit": (GRID, False),  # tokens with class and register tokens inside
    EVA: ([(8, 8)] * 4, False),  # positions that all blocks read
    DISTILLED: (GRID, False),  # two class tokens and two classifiers
}


def build(name: str, *, num_classes: int = 7, size: int = SIZE, **options) -> models.StagedNet:
    torch.manual_seed(0)
    return models.build(f"timm:{name}", num_classes=num_classes, image_size=size, **options).eval()


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_it_is_timms_network_with_its_maps_along_the_right_axes(name):
    sizes, runs_from_stages = NETWORKS[name]
    net, images = build(name), torch.randn(2, 3, SIZE, SIZE)
    seen = net.forward_features(images)
    assert (net.num_stages, net.runs_from_stages) == (4, runs_from_stages)
    assert [tuple(stage.shape[2:]) for stage in seen.stages] == sizes
    assert net.feature_shapes(SIZE) == [tuple(stage.shape[1:]) for stage in seen.stages]

    torch.manual_seed(0)
    original = timm.create_model(net.name.removeprefix("timm:"), num_classes=7, **net.arguments).eval()
    exported = models.export_state_dict(net)
    original.load_state_dict(exported, strict=True)
    logits, maps = original(images), original.forward_intermediates(images, intermediates_only=True)
    assert torch.equal(net(images), seen.logits) and torch.allclose(seen.logits, logits, atol=1e-5)
    for stage in seen.stages:
        assert any(stage.shape == given.shape and torch.allclose(stage, given, atol=1e-5) for given in maps)

    # Another quarter of the image changes the same quarter of each map most.
    for row, column in ((0, 1), (1, 0)):
        other = images.clone()
        half = SIZE // 2
        other[:, :, row * half : (row + 1) * half, column * half : (column + 1) * half] += 3
        shown = 2 if sizes == PYRAMID else 4  # later pixels of a convolutional network see the whole image
        for before, after in list(zip(seen.stages, net.forward_features(other).stages, strict=True))[:shown]:
            change = nn.functional.adaptive_avg_pool2d((after - before).abs().sum(1), 2).sum(0)
            assert divmod(int(change.argmax()), 2) == (row, column), list(before.shape)

    if runs_from_stages:
        assert torch.allclose(net.tail(3)(seen.stages[1]), seen.logits, atol=1e-5)
        assert torch.allclose(net.forward_from(5, seen.stages[-1]), seen.logits, atol=1e-5)
    else:
        with pytest.raises(ValueError, match=f"{net.name} can't run from the map of a stage.*offers no branches"):
            net.tail(3)
        with pytest.raises(ValueError, match="has no pre-activations"):
            net.forward_features(images, preact=True)


@pytest.mark.parametrize(
    ("shape", "channels", "order", "axes", "grid"),
    [
        ((2, 24, 8, 8), 24, None, (0, 1, 2, 3), None),
        ((2, 8, 8, 24), 24, None, (0, 2, 3, 1), None),
        ((2, 8, 8, 8), 8, None, (0, 1, 2, 3), None),  # both fit: the order that timm states
        ((2, 8, 8, 8), 8, "NHWC", (0, 2, 3, 1), None),
        ((2, 64, 24), 24, None, (0, 1, 2, 3), (8, 8)),
    ],
)
def test_layouts(shape, channels, order, axes, grid):
    assert layout_of(shape, channels, order) == (axes, grid)


@pytest.mark.parametrize("shape", [(2, 8, 8, 25), (2, 65, 24), (2, 24), (2, 8, 4, 24)])
def test_what_may_be_read_along_the_wrong_axis_is_no_map(shape):
    with pytest.raises(ValueError, match="is no map of 24 channels"):
        layout_of(shape, 24, None)


def test_stages_are_the_last_maps_of_each_size_or_four_of_many_of_one_size():
    def described(*reductions):
        return [Described(str(i), 8, reduction) for i, reduction in enumerate(reductions)]

    def chosen(*reductions):
        stem, stages = choose_stages(described(*reductions))
        return stem and stem.module, [each.module for each in stages]

    assert chosen(2, 4, 8, 16, 32) == ("0", ["1", "2", "3", "4"])
    assert chosen(4, 8, 16, 32) == (None, ["0", "1", "2", "3"])
    assert chosen(1, 2, 4, 8, 16, 32) == ("1", ["2", "3", "4", "5"])
    assert chosen(*[16] * 12) == (None, ["2", "5", "8", "11"])
    assert chosen(2, 32) == (None, ["0", "1"])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("test_vitt", 64, r"unknown network 'timm:test_vitt' \(did you mean timm:test_vit"),
        ("test_vit.r161", 64, "timm:test_vit has no weights 'r161', only r160_in1k"),
        ("", 64, "'timm:' must name a network"),
        ("patch_size=4", 64, "'timm:patch_size=4' must name a network"),
        ("test_vit:img_size=32", 64, "img_size can't be given: data.image_size decides it"),
        ("test_vit:num_classes=3", 64, "num_classes can't be given: the images decide it"),
        ("test_vit:checkpoint_path=x.pth", 64, "checkpoint_path can't be given: it is not an argument of the network"),
        ("test_vit:depth=2:depth=3", 64, "gives depth twice"),
        ("test_vit:depth={a}", 64, "depth must be a number, a text, true, false, or a list of these"),
        ("test_vit:dept=2", 64, "timm:test_vit can't be built .*unexpected keyword argument 'dept'"),
        ("test_vit", 40, "patches of 16 pixels, which do not divide 40.*timm:test_vit:patch_size=4"),
        ("levit_128s", 40, "timm:levit_128s can't run on images of 40 x 40 pixels .* it is made for 224 x 224"),
        ("local-dir:/nowhere", 64, "the description of timm:local-dir:/nowhere can't be read"),
    ],
)
def test_what_can_not_be_built_is_refused_in_one_line(name, size, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, size=size)
    assert "\n" not in str(caught.value)


def test_names():
    parsed = timm_names.parse("timm:hf-hub:owner/name:patch_size=4:depths=[1,2]:act_layer=relu:x=true")
    assert parsed.model == "hf-hub:owner/name"
    assert parsed.arguments == {"patch_size": 4, "depths": [1, 2], "act_layer": "relu", "x": True}
    assert all(map(timm_names.is_timm, ("timm:x", "hf-hub:a/b", "local-dir:x")))
    assert not timm_names.is_timm("resnet18")


def test_a_network_for_one_size_is_built_for_that_of_the_images():
    net = build("test_vit", size=96)
    assert net.arguments == {"img_size": 96}
    assert net.feature_shapes(96)[0] == (64, 6, 6)
    assert build("test_convnext", size=96).arguments == {}


@pytest.mark.parametrize("name", ["test_vit:patch_size=8:depth=2", "test_convnext"])
def test_an_export_names_network_and_arguments(name, tmp_path):
    net, images = build(name, in_channels=1), torch.randn(2, 1, SIZE, SIZE)
    models.save(net, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["name"], config["custom"]) == (net.name, False)
    given = {"patch_size": 8, "depth": 2, "img_size": SIZE}
    assert config.get("arguments") == (given if "vit" in name else None)
    assert config["format"] == (3 if "vit" in name else 1)
    with torch.no_grad():
        assert torch.equal(models.load(tmp_path)(images), net(images))
    again = build(name, in_channels=1)
    nn.init.zeros_(next(again.parameters()))
    models.load_weights(again, tmp_path)
    assert torch.equal(next(again.parameters()), next(net.parameters()))


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": {"checkpoint_path": "x"}},
        {"arguments": {"depth": {"a": 1}}},
        {"arguments": {"nothing": 1}},
        {"name": "timm:hf-hub:owner/name"},
    ],
)
def test_a_changed_description_builds_nothing_else(change, tmp_path):
    models.save(build("test_vit:depth=2"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("crc32", None)
    (tmp_path / "config.json").write_text(seal(config | change))
    with pytest.raises(ValueError, match=r"can't be given|must be a number|can't be built|must be timm's own"):
        models.load(tmp_path)


def test_without_timm_one_line_says_what_to_install(monkeypatch, tmp_path):
    models.save(build("test_convnext"), tmp_path)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"begin with timm: need timm.*pip install timm"):
        models.build("timm:test_convnext")
    with pytest.raises(models.WeightsError, match=r"need timm.*pip install timm") as caught:
        models.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["test_vit", "test_vit:class_token=false:reg_tokens=0:global_pool=avg:dynamic_img_size=false"]
)
def test_positions_are_not_decayed(name):
    net = build(name)
    assert net.runs_from_stages is (name != "test_vit")
    exempt = {f"{prefix}.{each}".lstrip(".") for prefix, module in net.named_modules() for each in _exempt_of(module)}
    assert net.own_name("pos_embed") in exempt & dict(net.named_parameters()).keys()


def _exempt_of(module):
    return module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()


def test_files_of_timms_training_script_load(tmp_path):
    net = build("test_convnext")
    original = timm.create_model("test_convnext", num_classes=7)
    torch.save({"state_dict": original.state_dict(), "arch": "test_convnext"}, tmp_path / "best.pth.tar")
    models.load_weights(net, tmp_path / "best.pth.tar")
    assert torch.equal(net.state_dict()[net.wrapped_names["head.fc.weight"]], original.head.fc.weight)
