"""Properties of every staged network, tested on one small network of each family."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from networks import build
from torch import nn
from torch.nn.functional import batch_norm, channel_shuffle, relu

from sftn_fast.models import shufflenet_v2

TORCHVISION = ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"]
SMALL = ["resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", *TORCHVISION]
FAMILIES = ["resnet14", "ResNet50", "wrn_16_2", "vgg11", "MobileNetV2", "ShuffleV1", "ShuffleV2", *TORCHVISION]
LINEAR = ("MobileNetV2", "mobilenet_v2")
SHUFFLED = ("ShuffleV2", "shufflenet_v2_x0_5")


def images(size: int = 16, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_all_ways_through_give_the_same_logits(name):
    net, x = build(name).eval(), images()
    logits = net(x)
    assert logits.std() > 0
    for preact in (False, True):
        seen = net.forward_features(x, preact=preact)
        assert torch.equal(seen.logits, logits)
        assert (seen.preacts is not None) == preact
        for i, taken in enumerate((seen.stem, *seen.stages), start=1):
            assert torch.equal(net.forward_from(i, taken), logits)
            assert torch.equal(net.tail(i)(taken), logits)
    classifier = net.head.classifier if name in TORCHVISION else net.head.fc
    assert torch.equal(classifier(seen.pooled), logits)


@pytest.mark.parametrize("i", [0, -1, 5])
def test_stages_that_are_not_there(i):
    net = build("resnet8")
    for call in (lambda: net.forward_from(i, images()), lambda: net.tail(i), lambda: net.input_shape(i, 32)):
        with pytest.raises(ValueError, match=f"stage must be from 1 to 4.*got {i}"):
            call()


def test_tail_has_parameters_of_its_own():
    net, x = build("wrn_16_1"), images()
    logits = net.eval()(x)
    logits.sum().backward()
    tail = net.tail(2)
    mine = {p.data_ptr() for p in (*net.parameters(), *net.buffers())}
    for p in (*tail.parameters(), *tail.buffers()):
        assert p.data_ptr() not in mine
        assert p.grad is None
        p.data.zero_()
    assert torch.equal(net(x), logits)
    expected = [name for name in net.state_dict() if name.startswith(("stages.1", "stages.2", "head"))]
    assert len(tail.state_dict()) == len(expected)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_preactivations(name):
    net = build(name)
    for mode in (True, False):
        seen = net.train(mode).forward_features(images(), preact=True)
        for i, (output, before) in enumerate(zip(seen.stages, seen.preacts, strict=True)):
            if name.startswith("wrn"):
                norm = net.preact_norms()[i]
                statistics = (None, None) if mode else (norm.running_mean, norm.running_var)
                assert output.min() < 0
                torch.testing.assert_close(
                    before, batch_norm(output, *statistics, norm.weight, norm.bias, training=mode, eps=norm.eps)
                )
            elif name in LINEAR:
                assert before is output
            else:
                assert before.min() < 0
                expected = channel_shuffle(relu(before), 2) if name in SHUFFLED else relu(before)
                assert torch.equal(output, expected)


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "resnet18"])
@torch.no_grad()
def test_preact_norms_are_those_that_write_the_preactivations(name):
    """Add 1 to a norm's bias: its stage's pre-activation moves by 1, and earlier ones not at all."""
    net = build(name).eval()
    before = net.forward_features(images(), preact=True).preacts
    net.preact_norms()[1].bias += 1
    after = net.forward_features(images(), preact=True).preacts
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1], before[1] + 1)


@pytest.mark.parametrize("name", SMALL)
def test_each_norm_sees_a_batch_once(name):
    passes = (
        lambda net, x: net(x),
        lambda net, x: net.forward_features(x),
        lambda net, x: net.forward_features(x, preact=True),
    )
    states = []
    for run in passes:
        net = build(name)
        run(net, images())
        counts = {m.num_batches_tracked.item() for m in net.modules() if isinstance(m, nn.BatchNorm2d)}
        assert counts == {1}
        states.append(net.state_dict())
    for state in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "ShuffleV2"])
@pytest.mark.parametrize("mode", [True, False])
def test_feature_shapes_leave_no_trace(name, mode):
    net = build(name).train(mode)
    net.stages[0].eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    random_state = torch.get_rng_state()
    net.feature_shapes(32)
    net.input_shape(2, 32)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.device.type == "cpu" for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [8, 28])
@torch.no_grad()
def test_shapes_are_those_of_a_real_pass(name, size):
    net = build(name, num_classes=3, in_channels=1)
    net.probe = cache(net.probe)  # one probe for both shapes
    seen = net.forward_features(images(size, channels=1))
    assert [tuple(m.shape[1:]) for m in seen.stages] == net.feature_shapes(size)
    assert tuple(seen.stem.shape[1:]) == net.input_shape(1, size)
    assert seen.logits.isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    """Check what DistributedDataParallel requires of a plain forward pass."""
    net = build(name)
    net(images(16, batch=4)).square().sum().backward()
    idle = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a BatchNorm has a gradient of zero, up to rounding.
    assert [key for key in idle if not (name.startswith("vgg") and key.endswith("bias"))] == []
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_autocast(name):
    net, x = build(name), images()
    with torch.autocast("cpu", torch.bfloat16):
        trained = net.forward_features(x, preact=True).logits
    trained.float().sum().backward()
    assert trained.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in net.parameters())
    # Compared in evaluation mode, since the statistics of two images amplify rounding.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = net.eval()(x).float()
    exact = net(x)
    assert (rounded - exact).norm() <= 0.05 * exact.norm()


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_channels_last(name):
    net, x = build(name).eval(), images()
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    seen = net.forward_features(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(seen.logits, expected, rtol=1e-4, atol=1e-4)
    if name != "shufflenet_v2_x0_5":  # torchvision's own shuffle returns NCHW
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in seen.stages)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ShuffleV2"])
@torch.no_grad()
def test_compiles_without_graph_breaks(name, monkeypatch):
    monkeypatch.setattr(shufflenet_v2, "DEPTHS", (1, 1, 1))  # one unit of each kind per stage
    net, x = build(name).eval(), images()
    torch._dynamo.reset()
    compiled = torch.compile(net.forward_features, fullgraph=True, backend="eager")
    seen, expected = compiled(x, preact=True), net.forward_features(x, preact=True)
    assert torch.equal(seen.logits, expected.logits)
    assert all(map(torch.equal, seen.preacts, expected.preacts))
