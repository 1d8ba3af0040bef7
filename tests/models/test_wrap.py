"""Users' networks: torchvision's, and small ones that can or can't be cut."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sftn_fast import models


class Functional(nn.Module):
    """Pooling, flattening and a skip connection in the forward function itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.conv3 = nn.Conv2d(4, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 6, 3, padding=1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(24, 5))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.conv2(x) + self.scale * x
        x = F.max_pool2d(x, 2)
        x = self.conv3(x)
        x = F.relu(self.conv4(F.relu(x)))
        x = F.adaptive_avg_pool2d(x, 2)
        return self.scale * self.classifier(x.view(x.size(0), -1))


def torchvision_case(name, *arguments, **options):
    torchvision = pytest.importorskip("torchvision")
    net = getattr(torchvision.models, name)(weights=None, num_classes=11)
    return net, models.as_staged(net, *arguments, **options), (3, 64)


CASES = {
    "resnet18": lambda: torchvision_case("resnet18", ["layer1", "layer2", "layer3", "layer4"], head="fc"),
    "mobilenet_v2": lambda: torchvision_case(
        "mobilenet_v2",
        ["features.3", "features.6", "features.13", "features.17"],
        head="classifier",
        stem="features.0",
    ),
    "functional": lambda: ((net := Functional()), models.as_staged(net, ["conv3", "conv4"], "classifier"), (1, 12)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", [True, False])
def test_logits_equal_those_of_the_wrapped_network(case, mode):
    torch.manual_seed(0)
    module, net, (channels, size) = CASES[case]()
    x = torch.randn(4, channels, size, size)

    def run(network):
        before = {key: value.clone() for key, value in module.state_dict().items()}
        torch.manual_seed(3)  # dropout
        logits = network(x)
        after = {key: value.clone() for key, value in module.state_dict().items()}
        module.load_state_dict(before)
        return logits, after

    module.train(mode)
    expected, expected_after = run(module)
    net.train(mode)
    logits, after = run(net)
    assert torch.equal(logits, expected)
    assert all(torch.equal(after[key], value) for key, value in expected_after.items())


@pytest.mark.parametrize(
    ("case", "shapes", "stem", "pooled"),
    [
        ("resnet18", [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)], (64, 16, 16), 512),
        ("mobilenet_v2", [(24, 16, 16), (32, 8, 8), (96, 4, 4), (320, 2, 2)], (32, 32, 32), 1280),
        ("functional", [(6, 6, 6), (6, 6, 6)], (4, 6, 6), 24),
    ],
)
@torch.no_grad()
def test_a_wrapped_network_is_a_staged_one(case, shapes, stem, pooled):
    torch.manual_seed(0)
    _, net, (channels, size) = CASES[case]()
    net.eval().probe = cache(net.probe)  # one probe for all shapes
    assert (net.in_channels, net.num_classes) == (channels, 5 if case == "functional" else 11)
    assert net.feature_shapes(size) == shapes
    assert net.input_shape(1, size) == stem
    x = torch.randn(2, channels, size, size)
    logits, seen = net(x), net.forward_features(x)
    assert torch.equal(seen.logits, logits)
    assert seen.pooled.shape == (2, pooled)
    for i, taken in enumerate((seen.stem, *seen.stages), start=1):
        assert tuple(taken.shape[1:]) == net.input_shape(i, size)
        assert torch.equal(net.forward_from(i, taken), logits)
        tail = net.tail(i)
        assert torch.equal(tail(taken), logits)
        assert {p.data_ptr() for p in tail.parameters()}.isdisjoint(p.data_ptr() for p in net.parameters())


def test_parameters_are_shared_and_keep_their_names():
    module = Functional()
    net = models.as_staged(module, ["conv3", "conv4"], "classifier")
    assert net.name == "as_staged(Functional)"
    own = dict(net.named_parameters())
    assert own["stem.conv1.weight"] is module.conv1.weight
    assert own["stages.1.conv4.bias"] is module.conv4.bias
    assert own["head.classifier.classifier.1.weight"] is module.classifier[1].weight
    used = {id(p) for key, p in module.named_parameters() if not key.startswith("unused")}
    assert {id(p) for p in own.values()} == used


def test_modes_of_the_wrapped_network_are_left_alone():
    module = Functional()
    module.norm1.eval()
    net = models.as_staged(module, ["conv3", "conv4"], "classifier")
    assert net.training
    assert module.conv1.training
    assert not module.norm1.training
    assert not models.as_staged(module.eval(), ["conv3", "conv4"], "classifier").training


def test_no_preactivations():
    net = models.as_staged(Functional(), ["conv3", "conv4"], "classifier")
    for call in (lambda: net.forward_features(torch.zeros(2, 1, 12, 12), preact=True), net.preact_norms):
        with pytest.raises(ValueError, match=r"as_staged\(Functional\) has no"):
            call()


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.conv2(self.relu(self.conv1(x))).mean((2, 3)))


class Branching(Base):
    def forward(self, x):
        x = self.conv1(x)
        if x.mean() > 0:
            x = -x
        return self.fc(self.conv2(x).mean((2, 3)))


class Crossing(Base):
    def forward(self, x):
        y = self.conv1(x)
        return self.fc((self.conv2(y) + y).mean((2, 3)))


class Dropping(Base):
    def forward(self, x):
        x = F.dropout(self.conv2(self.conv1(x)), training=self.training)
        return self.fc(x.mean((2, 3)))


class Noisy(Base):
    def forward(self, x):
        x = self.conv2(self.conv1(x) * torch.rand(1))
        return self.fc(x.mean((2, 3)))


class Overwriting(Base):
    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        return self.fc(self.conv2(x).mean((2, 3)))


class OverwritingByMethod(Base):
    def forward(self, x):
        x = self.conv1(x)
        x.clamp_(min=0)
        return self.fc(self.conv2(x).mean((2, 3)))


class Repeating(Base):
    def forward(self, x):
        return self.fc(self.conv2(self.conv2(self.conv1(x))).mean((2, 3)))


class TwoResults(Base):
    def forward(self, x):
        x = self.conv2(self.conv1(x))
        return self.fc(x.mean((2, 3))), x


class TwoArguments(Base):
    def forward(self, x, mask):
        return self.fc(self.conv2(self.conv1(x) * mask).mean((2, 3)))


class Detached(Base):
    def forward(self, x):
        y = self.conv1(x)
        self.conv2(y)
        return self.fc(y.mean((2, 3)))


@pytest.mark.parametrize(
    ("kind", "stages", "head", "message"),
    [
        (Base, [], "fc", "at least one"),
        (Base, ["conv3"], "fc", r"unknown module 'conv3' \(did you mean conv2"),
        (Base, [""], "fc", "unknown module ''"),
        (Base, ["conv1"], "classifier", "unknown module 'classifier'.*known are conv1, conv2, relu, fc"),
        (Base, ["conv2", "conv1"], "fc", "'conv1' runs before 'conv2'"),
        (Base, ["fc"], "conv2", "'conv2' runs before 'fc'"),
        (Base, ["conv2", "conv2"], "fc", "named twice"),
        (Base, ["conv1", "conv2"], "fc", "the output of 'conv1' is overwritten in place by 'relu'"),
        (Overwriting, ["conv1", "conv2"], "fc", "the output of 'conv1' is overwritten in place by 'relu'"),
        (OverwritingByMethod, ["conv1", "conv2"], "fc", "the output of 'conv1' is overwritten in place by 'clamp_'"),
        (Branching, ["conv1", "conv2"], "fc", "Branching can't be traced.*must not branch on tensors"),
        (Crossing, ["conv1", "conv2"], "fc", "'add' needs 'conv1', which crosses the cut after 'conv2'"),
        (Dropping, ["conv1", "conv2"], "fc", "depends on self.training.*nn.Dropout"),
        (Noisy, ["conv1", "conv2"], "fc", "Noisy depends on self.training or on random numbers"),
        (Repeating, ["conv1", "conv2"], "fc", "'conv2' must run once in a forward pass, but runs 2 times"),
        (Base, ["conv1", "relu"], "relu", "named twice"),
        (TwoResults, ["conv1", "conv2"], "fc", "must give one tensor"),
        (TwoArguments, ["conv1", "conv2"], "fc", "also uses mask"),
        (Detached, ["conv1", "conv2"], "fc", "'mean' needs 'conv1', which crosses the cut after 'conv2'"),
    ],
)
def test_what_cannot_be_cut_is_refused(kind, stages, head, message):
    module = kind()
    modes = [m.training for m in module.modules()]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        models.as_staged(module, stages, head)
    assert [m.training for m in module.modules()] == modes


@pytest.mark.parametrize("stages", [["0", "1"], ["1"]])
def test_a_sequence_that_starts_in_place_is_refused(stages):
    inner = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), inner, nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match="the output of '0' is overwritten in place by '1'"):
        models.as_staged(net, stages, "3")
    inner[0].inplace = False
    assert models.as_staged(net, stages, "3").num_stages == len(stages)


def test_counts_that_are_not_to_be_seen_are_asked_for():
    class Mean(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)), Mean())
    with pytest.raises(ValueError, match=r"head '2' holds no linear or convolutional layer.*give num_classes"):
        models.as_staged(net, ["0", "1"], "2")
    assert models.as_staged(net, ["0", "1"], "2", num_classes=4).num_classes == 4
    net = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(ValueError, match=r"no convolution.*give in_channels"):
        models.as_staged(net, ["0", "1"], "3")
    assert models.as_staged(net, ["0", "1"], "3", in_channels=3).feature_shapes(8) == [(3, 8, 8), (3, 8, 8)]


def test_in_place_steps_within_a_stage_are_kept():
    class Steps(Base):
        def forward(self, x):
            x = self.conv1(x) * 1
            x.clamp_(min=0)  # its result is not used
            x = self.fc(self.conv2(x).mean((2, 3)))
            x.mul_(2)
            return x

    torch.manual_seed(0)
    module, x = Steps(), torch.randn(2, 3, 8, 8)
    assert torch.equal(models.as_staged(module, ["conv2"], "fc", stem="conv1")(x), module(x))


@pytest.mark.parametrize("mode", [True, False])
def test_buffers_and_constants_of_the_forward_function(mode):
    class Normalising(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))

        def forward(self, x):
            x = self.conv1((x - self.mean.view(3, 1, 1)) * torch.tensor(2.0))
            return self.fc(self.conv2(x * torch.arange(1, 5).view(4, 1, 1)).mean((2, 3)))

    module, x = Normalising().train(mode), torch.randn(2, 3, 8, 8)
    attributes = set(vars(module))
    net = models.as_staged(module, ["conv1", "conv2"], "fc")
    assert set(vars(module)) == attributes
    module.mean.fill_(0.5)  # buffers are shared, like parameters
    assert torch.equal(net(x), module(x))
    assert net.double()(x.double()).dtype == torch.float64
    assert net.feature_shapes(8) == [(4, 8, 8), (4, 8, 8)]


def test_a_module_within_a_stage_may_do_what_it_likes():
    class Wild(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Wild(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(models.as_staged(net, ["0", "2"], "4")(x), net(x))
