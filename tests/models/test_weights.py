"""Weights from other projects: what is loaded, and what is refused."""

from __future__ import annotations

import pickle
import re
from argparse import Namespace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from sftn_fast import models


def network(name: str = "resnet8", num_classes: int = 5) -> models.StagedNet:
    return models.build(name, num_classes=num_classes)


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


WRAPPERS = {
    "plain": lambda state: state,
    "ddp": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled in ddp": prefixed("module._orig_mod."),
    "ddp compiled": prefixed("_orig_mod.module."),
    "repdistiller": lambda state: {"epoch": 240, "model": state, "best_acc": torch.tensor(75.6)},
    "timm": lambda state: {"epoch": 3, "arch": "resnet8", "state_dict": state, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": prefixed("module.")(state), "acc": 93.1, "epoch": 12},
    "timm's averaged": lambda state: {"state_dict": zeroed(state), "state_dict_ema": state, "args": COMMAND},
    "torchvision's averaged": lambda state: {
        "model": zeroed(state),
        "model_ema": {"n_averaged": torch.tensor(7), **prefixed("module.")(state)},
        "args": COMMAND,
    },
}
COMMAND = Namespace(arch="resnet8", lr=0.1, milestones=[30, 60, 90], resume=None)


def zeroed(state):
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_wrappers_and_prefixes_are_understood(wrapper, suffix, tmp_path):
    file = tmp_path / f"teacher{suffix}"
    torch.manual_seed(0)
    net = network()
    torch.save(WRAPPERS[wrapper](net.state_dict()), file)
    other = network()
    models.load_weights(other, file)
    loaded = models.load(file, name="resnet8", num_classes=5)
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value)
        assert torch.equal(loaded.state_dict()[key], value)


def test_the_older_format_of_torch_save(tmp_path):
    file, net = tmp_path / "old.pth", network()
    torch.save(net.state_dict(), file, _use_new_zipfile_serialization=False)
    models.load_weights(network(), file)


def in_repdistiller_names(state):
    """Return the state of a resnet8 under RepDistiller's names."""
    names = {"stem.0": "conv1", "stem.1": "bn1", "head.fc": "fc", "shortcut": "downsample"}
    for i in range(3):
        names[f"stages.{i}"] = f"layer{i + 1}"
    pattern = "|".join(map(re.escape, names))
    return {re.sub(pattern, lambda match: names[match[0]], key): value for key, value in state.items()}


@torch.no_grad()
def test_names_of_repdistiller_are_understood(tmp_path):
    file, net = tmp_path / "ckpt_epoch_240.pth", network().eval()
    theirs = in_repdistiller_names(net.state_dict())
    assert "layer2.0.downsample.0.weight" in theirs
    torch.save({"epoch": 240, "model": prefixed("module.")(theirs)}, file)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(models.load(file, name="resnet8", num_classes=5)(x), net(x))


@pytest.mark.parametrize("rename", [lambda state: state, in_repdistiller_names])
@pytest.mark.parametrize(
    ("target", "messages"),
    [
        (
            {"num_classes": 10},
            [
                "does not fit resnet8 with 10 classes",
                "head.fc.weight: [5, 64] in the file, [10, 64] in the network",
                "head.fc.bias: [5] in the file, [10] in the network",
            ],
        ),
        (
            {"name": "resnet8x4"},
            [
                "does not fit resnet8x4 with 5 classes",
                "stem.0.weight: [16, 3, 3, 3] in the file, [32, 3, 3, 3] in the network",
                "and 4",
            ],
        ),
        (
            {"name": "resnet14"},
            ["stages.0.1.conv1.weight: [16, 16, 3, 3] in the network, not in the file", "and 25 more"],
        ),
    ],
)
def test_a_mismatch_is_listed_and_changes_nothing(rename, target, messages, tmp_path):
    file, net = tmp_path / "teacher.pth", network(**target)
    torch.save(rename(network().state_dict()), file)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(models.WeightsError) as caught:
        models.load_weights(net, file)
    for message in (str(file), *messages):
        assert message in str(caught.value)
    assert str(caught.value).count("\n") <= 6
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_one_weight_more_or_less_is_a_mismatch(tmp_path):
    file, net = tmp_path / "teacher.pth", network()
    more = {**net.state_dict(), "ema": torch.zeros(3)}
    torch.save(more, file)
    with pytest.raises(models.WeightsError, match=r"ema: \[3\] in the file, not in the network$"):
        models.load_weights(net, file)
    del more["ema"], more["head.fc.bias"]
    torch.save(more, file)
    with pytest.raises(models.WeightsError, match=r"head.fc.bias: \[5\] in the network, not in the file$"):
        models.load_weights(net, file)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("wrap", [lambda p: p, lambda p: {"model": p}, lambda p: {"state_dict": {"a": p}}])
@pytest.mark.parametrize("save", ["torch", "torch, older format", "pickle"])
def test_a_payload_never_runs(wrap, save, tmp_path):
    file, marker = tmp_path / "teacher.pth", tmp_path / "payload-ran"
    payload = wrap(Payload(marker))
    if save == "pickle":
        file.write_bytes(pickle.dumps(payload, protocol=2))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=save == "torch")
    for load in (
        lambda: models.load(file, name="resnet8", num_classes=5),
        lambda: models.load_weights(network(), file),
    ):
        with pytest.raises(models.WeightsError, match=r"nothing was loaded.*torch.save\(model.state_dict"):
            load()
        assert not marker.exists()
    pickle.loads(pickle.dumps(payload))  # unpickling the payload does run its code
    assert marker.exists()


def test_a_whole_pickled_network_is_refused(tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(network(), file)
    with pytest.raises(models.WeightsError, match=r"holds Python objects \(sftn_fast.models.resnet.ResNet\)"):
        models.load_weights(network(), file)


@pytest.mark.parametrize("length", [0, 3, 1000, -30])
def test_a_truncated_file_is_refused(length, tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(network().state_dict(), file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(models.WeightsError, match=r"teacher\.pth is damaged"):
        models.load_weights(network(), file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds no weights by name: it is a list"),
        (torch.zeros(3), "it is a Tensor"),
        ({}, "it is a dict"),
        ({"model": {}}, "holds no weights by name"),
        ({0: torch.zeros(3)}, "holds no weights by name, only other values, such as 0"),
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "holds no weights by name, only other values, such as 'epoch'"),
        ({"epoch": 3, "weights": {"a": torch.zeros(1)}}, "does not fit resnet8 .*; the file has under 'weights' a:"),
    ],
)
def test_a_file_without_weights_is_refused(content, message, tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(content, file)
    with pytest.raises(models.WeightsError, match=message):
        models.load_weights(network(), file)


def test_a_tensor_under_two_names_is_refused(tmp_path):
    file, net = tmp_path / "teacher.pth", network()
    theirs = in_repdistiller_names(net.state_dict())
    torch.save({**theirs, "stem.0.weight": torch.zeros_like(theirs["conv1.weight"])}, file)
    with pytest.raises(models.WeightsError, match=r"does not fit resnet8 with 5 classes"):
        models.load_weights(net, file)
    assert torch.equal(net.state_dict()["stem.0.weight"], theirs["conv1.weight"])


def test_a_text_file_is_refused(tmp_path):
    file = tmp_path / "teacher.pth"
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(models.WeightsError, match="damaged"):
        models.load_weights(network(), file)


# Files of torchvision and timm, with their own names.


def test_a_file_of_torchvisions_names(tmp_path):
    torchvision_models = pytest.importorskip("torchvision.models")
    original = torchvision_models.shufflenet_v2_x0_5(num_classes=5).eval()
    torch.save({"model": prefixed("module.")(original.state_dict()), "args": COMMAND}, tmp_path / "model_89.pth")
    safetensors.torch.save_file(original.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(2, 3, 33, 33)
    for file in ("model_89.pth", "model.safetensors"):
        net = models.load(tmp_path / file, name="shufflenet_v2_x0_5", num_classes=5)
        assert torch.equal(net(x), original(x))
        cut = models.as_staged(torchvision_models.shufflenet_v2_x0_5(num_classes=5), ["stage3", "stage4"], "fc")
        models.load_weights(cut, tmp_path / file)
        assert torch.equal(cut.eval()(x), original(x))


def test_another_architecture_is_refused_by_the_names_that_differ(tmp_path):
    """Refuse timm's resnet18d, which has a stem of three convolutions."""
    pytest.importorskip("torchvision")
    net = models.build("resnet18", num_classes=5)
    theirs = {other: net.state_dict()[own] for other, own in net.wrapped_names.items()}
    del theirs["conv1.weight"]
    theirs |= {"conv1.0.weight": torch.zeros(32, 3, 3, 3), "layer2.0.downsample.1.weight": torch.zeros(128, 64, 1, 1)}
    torch.save(theirs, tmp_path / "resnet18d.pth")
    with pytest.raises(models.WeightsError) as caught:
        models.load_weights(net, tmp_path / "resnet18d.pth")
    _, *lines = str(caught.value).splitlines()
    assert lines == [
        "  stages.1.0.downsample.1.weight: [128, 64, 1, 1] in the file, [128] in the network",
        "  stem.0.weight: [64, 3, 7, 7] in the network, not in the file",
        "  conv1.0.weight: [32, 3, 3, 3] in the file, not in the network",
    ]


def test_a_file_from_elsewhere_needs_a_name(tmp_path):
    file = tmp_path / "teacher.pth"
    torch.save(network().state_dict(), file)
    for options in ({}, {"name": "resnet8"}, {"num_classes": 5}):
        with pytest.raises(models.WeightsError, match="give name and num_classes"):
            models.load(file, **options)
