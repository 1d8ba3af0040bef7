"""A folded network sees what the network sees, to float rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import build
from torch import nn

from sftn_fast import distillers, models
from sftn_fast.models import Features, StagedNet
from sftn_fast.models.fold import FrozenNet, fold

ROUNDING = {"rtol": 1e-9, "atol": 1e-9}  # in float64, where an error of the algebra would stand out
KEPT_OF_WRN = 0.54
"""Share of the BatchNorms that can't be folded in a pre-activation network: those behind the sums, and the head's."""


def norms(net: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def assert_alike(ours: Features, theirs: Features, **tolerance: float) -> None:
    maps = [(ours.stem, theirs.stem), (ours.pooled, theirs.pooled), (ours.logits, theirs.logits)]
    maps += zip(ours.stages, theirs.stages, strict=True)
    maps += zip(ours.preacts or [], theirs.preacts or [], strict=True)
    for our, their in maps:
        torch.testing.assert_close(our, their, **tolerance)


@pytest.mark.parametrize("name", models.names())
@torch.no_grad()
def test_every_network(name):
    net = build(name).eval().double()
    folded, x = fold(net), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert_alike(folded.forward_features(x, preact=True), net.forward_features(x, preact=True), **ROUNDING)
    assert torch.equal(folded(x), folded.forward_features(x).logits)
    assert norms(net) > 0
    assert norms(folded) <= (KEPT_OF_WRN if name.startswith("wrn") else 0) * norms(net)


@torch.no_grad()
def test_a_users_own_network():
    module = nn.Sequential()
    module.add_module("stem", nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    module.add_module("one", nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)))
    module.add_module("two", nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)))
    module.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    module.add_module("fc", nn.Linear(4, 5))
    for norm in (layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    net = models.as_staged(module.double().eval(), ["one", "two"], head="fc")
    folded, x = fold(net), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_alike(folded.forward_features(x), net.forward_features(x), **ROUNDING)
    assert (norms(net), norms(folded)) == (3, 1)


class Twice(nn.Module):
    """What reads the convolution beside the BatchNorm would see other values, were that folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = self.conv(x)
        return before + self.norm(before)


class Branching(Twice):
    """Can't be traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else self.conv(x)


@pytest.mark.parametrize("stem", [Twice, Branching])
@torch.no_grad()
def test_what_can_not_be_folded_stays(stem):
    net = StagedNet(stem(), [nn.Conv2d(4, 4, 3)], models.staged.Head(4, 5), num_classes=5, in_channels=3).eval()
    nn.init.normal_(net.stem.norm.running_mean)
    folded, x = fold(net), torch.randn(2, 3, 16, 16)
    assert norms(folded) == 1
    for images in (x, x - x.mean() - 1):
        assert torch.equal(folded(images), net(images))


def _other_weights(net: StagedNet) -> None:
    net.load_state_dict(
        {
            name: tensor + (0.1 if tensor.is_floating_point() else 0)
            for name, tensor in copy.deepcopy(net.state_dict()).items()
        }
    )


def _training(net: StagedNet) -> None:
    net.train()(torch.randn(4, 3, 16, 16))
    net.eval()


@pytest.mark.parametrize("change", [_other_weights, _training, StagedNet.double])
@torch.no_grad()
def test_the_folded_copy_follows_its_network(change):
    net = build("resnet8").eval()
    frozen, x = FrozenNet(net), torch.randn(2, 3, 16, 16)
    before = frozen()
    assert frozen() is before
    change(net)
    x = x.to(net.head.fc.weight.dtype)
    torch.testing.assert_close(frozen()(x), net(x), rtol=1e-4, atol=1e-4)
    assert frozen() is not before
    assert not frozen().training
    assert not any(parameter.requires_grad for parameter in frozen().parameters())


@pytest.mark.parametrize("spec", ["kd=0.9", "oh=1", "at=1,rkd=1"])
def test_a_distiller_runs_the_folded_teacher(spec):
    """Its losses are those of the unfolded one, whose BatchNorms OH reads its margins from."""
    student, teacher = build("resnet8"), build("resnet14").eval()
    distiller = distillers.build(spec, student=student, teacher=teacher, num_samples=8, image_size=16)
    images, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    student.eval()  # whose BatchNorms would else have moved on at the second call
    terms = distiller(images, labels, labels)
    run = distiller._frozen[0]()
    assert norms(run) == 0
    distiller._frozen = (lambda: teacher,)
    for name, expected in distiller(images, labels, labels).items():
        torch.testing.assert_close(terms[name], expected, rtol=1e-4, atol=1e-6)
