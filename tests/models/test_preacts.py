"""Maps of timm's networks before the last activation of each stage."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sftn_fast import distillers, models
from sftn_fast.models.preacts import PreactStage, give_preact
from sftn_fast.tasks import DistillTask

SIZE = 64
SWIN = "swin_tiny_patch4_window7_224:embed_dim=16:depths=[1,1,1,1]:num_heads=[1,1,2,2]:window_size=4"

# Name in timm's network of each stage's last activation, or None, and of the BatchNorm that writes what it takes.
FAMILIES: dict[str, tuple[list[str | None], list[str] | None]] = {
    "test_resnet": (
        ["layer1.0.act2", "layer2.0.act2", "layer3.0.act3", "layer4.0.act2"],
        ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn3", "layer4.0.bn2"],
    ),
    "regnetx_002": (
        ["s1.b1.act3", "s2.b1.act3", "s3.b4.act3", "s4.b7.act3"],
        ["s1.b1.conv3.bn", "s2.b1.conv3.bn", "s3.b4.conv3.bn", "s4.b7.conv3.bn"],
    ),
    "mobilenetv4_conv_small_035": (  # the norm applies the activation, or none
        ["blocks.0.1.bn1.act", "blocks.1.1.bn1.act", None, "blocks.4.0.bn1.act"],
        ["blocks.0.1.bn1", "blocks.1.1.bn1", "blocks.2.5.pw_proj.bn", "blocks.4.0.bn1"],
    ),
    "mobilenetv3_small_050": (
        [None, None, None, "blocks.5.0.bn1.act"],
        ["blocks.0.0.bn2", "blocks.1.1.bn3", "blocks.3.1.bn3", "blocks.5.0.bn1"],
    ),
    "test_efficientnet": ([None] * 4, ["blocks.1.0.bn2", "blocks.2.0.bn2", "blocks.3.0.bn3", "blocks.4.0.bn3"]),
    "seresnet18": (["layer1.1.act2", "layer2.1.act2", "layer3.1.act2", "layer4.1.act2"], None),  # a gate after the norm
    "test_convnext": ([None] * 4, None),
    SWIN: ([None] * 4, None),
}


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_timms_own_network_gives_the_same_maps_to_its_activations(name, timm):
    activations, norms = FAMILIES[name]
    torch.manual_seed(0)
    net = models.build(f"timm:{name}", num_classes=7, image_size=SIZE).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):  # many begin with zeros, which hide the residual path
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    original = timm.create_model(net.name.removeprefix("timm:"), num_classes=7, **net.arguments).eval()
    original.load_state_dict(models.export_state_dict(net), strict=True)
    taken: dict[str, Tensor] = {}
    for each in filter(None, activations):
        original.get_submodule(each).register_forward_pre_hook(
            lambda module, inputs, each=each: taken.__setitem__(each, inputs[0].clone())
        )
    images = torch.randn(2, 3, SIZE, SIZE)
    logits = original(images)
    plain, seen = net.forward_features(images), net.forward_features(images, preact=True)
    torch.testing.assert_close(seen.logits, logits)
    for each, preact, stage, expected in zip(activations, seen.preacts, plain.stages, seen.stages, strict=True):
        assert torch.equal(stage, expected)
        assert torch.equal(preact, stage) if each is None else not torch.equal(preact, stage)
        if each is not None:
            torch.testing.assert_close(preact, taken[each])
    if norms is None:
        with pytest.raises(ValueError, match="no single BatchNorm writes the pre-activation of a stage"):
            net.preact_norms()
        return
    own = original.state_dict()
    for norm, theirs in zip(net.preact_norms(), norms, strict=True):
        assert torch.equal(norm.weight, own[f"{theirs}.weight"]) and torch.equal(norm.bias, own[f"{theirs}.bias"])


class Net(nn.Module):
    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage, self.last, self.head = stage, nn.Conv2d(4, 4, 1), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.stage(x)).mean((2, 3)))


class Block(nn.Module):
    """Block of a kind that no family above has."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.relu = kind, nn.ReLU(inplace=True)
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3, padding=1)
        self.norm2, self.block = nn.BatchNorm2d(4), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.scale, self.prelu, self.drop = nn.Parameter(torch.ones(1)), nn.PReLU(), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.conv(x))
        match self.kind:
            case "one activation in two places":
                return self.relu(self.drop(self.norm(self.relu(self.conv(x)))) + self.other(x))
            case "a function":
                return torch.relu(normed)
            case "parallel paths":
                return self.relu(normed + self.norm2(self.other(x)))
            case "a scale after the activation":
                return self.relu(normed) * self.scale
            case "a shift after the activation":
                return self.relu(normed) + self.scale
            case "maps side by side":
                return torch.cat([self.relu(normed)[:, :2], normed[:, 2:]], 1)
            case "an activation that learns":
                return self.prelu(normed)
            case "a map that is read elsewhere":
                active = self.block(self.conv(x))
                active.mean()
                return active
            case "a block that runs twice":
                return self.block(self.block(self.conv(x)))
        return normed.clamp(0)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [("one activation in two places", "stage.norm"), ("a function", "stage.norm"), ("parallel paths", None)],
)
def test_an_activation_is_taken_out_where_it_is_last_alone(kind, norm):
    torch.manual_seed(0)
    net, images = models.as_staged(Net(Block(kind)).eval(), ["stage", "last"], "head"), torch.randn(2, 3, 5, 5)
    before = net.stages[0](images)
    stage = give_preact(net.stages[0])
    assert isinstance(stage, PreactStage) and stage.norm == norm
    out, preact = stage.forward_preact(images)
    torch.testing.assert_close(out, before)
    assert torch.equal(out, preact.relu()) and preact.min() < 0


@pytest.mark.parametrize(
    "kind",
    [
        "a scale after the activation",
        "a shift after the activation",
        "maps side by side",
        "an activation that learns",
        "a map that is read elsewhere",
        "a block that runs twice",
        "a clamp",
    ],
)
def test_what_is_unknown_stays_unknown(kind):
    net = models.as_staged(Net(Block(kind)).eval(), ["stage", "last"], "head")
    images = torch.randn(2, 3, 5, 5)
    before = net.stages[0](images)
    assert give_preact(net.stages[0]) is net.stages[0] and torch.equal(net.stages[0](images), before)


@pytest.mark.parametrize("method", ["oh", "ab:init_epochs=1", "reviewkd"])
def test_methods_before_the_activation_take_timms_networks(method):
    pytest.importorskip("timm")
    torch.manual_seed(0)
    teacher, student = (
        models.build(f"timm:{name}", num_classes=4, image_size=32) for name in ("test_resnet", "mobilenetv3_small_050")
    )
    distiller = distillers.build(f"{method},ce", student=student, teacher=teacher, num_samples=8, image_size=32)
    images, index = torch.randn(4, 3, 32, 32), torch.arange(4)
    tasks = [first.task for _, first in distiller.initialisations()] or [DistillTask(student, distiller)]
    for task in tasks:
        terms = task(images, index % 4, index)
        terms["total"].backward()
        assert torch.isfinite(terms["total"]) and terms["total"] > 0
    assert student.get_parameter(student.wrapped_names["conv_stem.weight"]).grad.abs().sum() > 0


def test_a_wide_resnet_with_an_input_of_its_own_shows_it_to_its_preacts_too():
    torch.manual_seed(0)
    net = models.build("wrn_16_1", num_classes=4).eval()
    images = torch.randn(2, 3, 16, 16)
    net.own_input = models.change_of_input((0.5,) * 3, (0.5,) * 3, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    with torch.no_grad():
        assert torch.equal(net.forward_features(images, preact=True).logits, net(images))
