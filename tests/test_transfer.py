"""The linear probe: its training data, the frozen network, its output."""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
from pathlib import Path

import programs
import pytest
import torch
from torch.nn import functional as F

from sftn_fast import data, models, transfer
from sftn_fast.config import ConfigError, DataConfig, TransferConfig
from sftn_fast.utils import plugins

FAKE = DataConfig("fake", train_size=70, image_size=16, crop_padding=0)  # 64 + 6: a partial batch


@pytest.fixture(scope="module")
def network() -> models.StagedNet:
    """An untrained network with the BatchNorm statistics of a batch."""
    torch.manual_seed(0)
    net = models.build("resnet8", num_classes=4)
    net(torch.randn(32, 3, 16, 16))
    return net.eval()


@pytest.fixture
def exported(network: models.StagedNet, tmp_path: Path) -> Path:
    models.save(network, tmp_path / "my network", meta={"image_size": 16})
    return tmp_path / "my network"


def config_for(folder: Path, **options: object) -> TransferConfig:
    return TransferConfig(**{"network": str(folder), "data": FAKE, "epochs": 3, "device": "cpu", **options})


def images_for(config: TransferConfig) -> data.ImageData:
    return data.build(config.data, seed=config.seed, batch_size=config.batch_size, device="cpu")


def by_hand(network: models.StagedNet, config: TransferConfig, lrs: list[float]) -> torch.nn.Linear:
    """Train the probe in plain PyTorch: each step runs its images through the frozen network."""
    images = images_for(config)
    classifier = transfer.new_classifier(64, images.num_classes, config.seed)
    sgd = torch.optim.SGD(classifier.parameters(), lr=1.0, momentum=0.9, weight_decay=config.weight_decay)
    for epoch, lr in enumerate(lrs):
        sgd.param_groups[0]["lr"] = lr
        for batch in images.train.epoch(epoch):
            with torch.no_grad():
                pooled = network.forward_features(batch.images).pooled
            sgd.zero_grad()
            F.cross_entropy(classifier(pooled), batch.target).backward()
            sgd.step()
    return classifier


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("crop_padding", [0, 2])
def test_it_is_the_plain_loop(augment: bool, crop_padding: int, network, exported) -> None:
    data_config = dataclasses.replace(FAKE, crop_padding=crop_padding, flip=crop_padding > 0)
    config = config_for(exported, data=data_config, augment=augment, lr=0.1, milestones=(2,), weight_decay=0.01)
    images = images_for(config)
    found = transfer.new_classifier(64, images.num_classes, config.seed)
    transfer.train(found, transfer.feature_epochs(network, images, config), config)
    # Features that are computed once are those of unaugmented images.
    seen = config if augment else dataclasses.replace(config, data=dataclasses.replace(FAKE, flip=False))
    expected = by_hand(network, seen, lrs=[0.1, 0.1, 0.01])
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.bias, expected.bias, rtol=1e-5, atol=1e-6)
    if crop_padding:  # both ways must differ, or the comparison above proves nothing
        other = dataclasses.replace(config, augment=not augment)
        unlike = transfer.new_classifier(64, images.num_classes, config.seed)
        transfer.train(unlike, transfer.feature_epochs(network, images, other), other)
        assert not torch.allclose(found.weight, unlike.weight, atol=1e-3)


@pytest.mark.parametrize("augment", [False, True])
def test_the_network_stays_as_it_is(augment: bool, network, exported) -> None:
    net = copy.deepcopy(network).train()
    before = copy.deepcopy(net.state_dict())
    config = config_for(exported, augment=augment, lr=0.05, milestones=())
    images = images_for(config)
    classifier = transfer.new_classifier(64, images.num_classes, config.seed)
    weight = classifier.weight.detach().clone()
    transfer.train(classifier, transfer.feature_epochs(net, images, config), config)
    assert not torch.equal(classifier.weight, weight)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_classifier_learns_what_the_features_tell(exported) -> None:
    result = transfer.run(config_for(exported, data=dataclasses.replace(FAKE, train_size=400), lr=1.0, epochs=20))
    assert result["top1"] > 60  # of ten classes
    assert result["top1"] <= result["top5"] <= 100


def test_the_same_seed_gives_the_same_result_and_another_another(exported) -> None:
    first, again, other = (transfer.run(config_for(exported, lr=0.1, seed=seed)) for seed in (1, 1, 2))
    assert first == again
    assert first["ce"] != other["ce"]


def test_no_global_random_state_decides(exported) -> None:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        results.append(transfer.run(config_for(exported, lr=0.1)))
    assert results[0] == results[1]


def test_what_is_written(exported) -> None:
    result = transfer.run(config_for(exported, data=DataConfig("fake", train_size=32)))
    file = exported / "transfer-fake-data.train_size=32-epochs=3.json"
    assert json.loads(file.read_text()) == result
    assert result["setting"]["output"] == str(file)
    setting = result["setting"]
    assert (setting["lr"], setting["milestones"], setting["weight_decay"]) == (0.05, [1, 2], 0.0)
    assert setting["data"]["image_size"] == 16  # the network's
    assert (result["network"], result["features"]) == ("resnet8", 64)
    assert result["sha256"] == models.read_config(exported)["sha256"]


OTHERS = {
    "plugins": ("[json]", False),  # the network's; the result has a digest of their content
    "epochs": ("7", True),
    "lr": ("0.3", True),
    "momentum": ("0.5", True),
    "weight_decay": ("0.1", True),
    "batch_size": ("32", True),
    "milestones": ("[2]", True),
    "augment": ("true", True),
    "seed": ("3", True),
    "overwrite": ("true", False),
    "device": ("cpu", False),  # the same computation up to rounding
    "data.name": ("stl10", True),
    "data.train_size": ("9", True),
    "data.root": ("elsewhere", False),
}


@pytest.mark.parametrize("key", OTHERS)
def test_every_setting_has_a_file_of_its_own(key: str, network, tmp_path: Path) -> None:
    folder = str(tmp_path / "net")
    value, other_file = OTHERS[key]
    usual, changed = (
        transfer._resolve(transfer.parse([folder, "--data.name", "fake", *options]), network, {})
        for options in ([], [f"--{key}", value])
    )
    assert usual.output == f"{folder}/transfer-fake.json"
    assert (usual.output != changed.output) == other_file


def test_every_key_is_looked_at() -> None:
    keys = {field.name for field in dataclasses.fields(TransferConfig)}
    assert keys - {"network", "output", "data"} == {key for key in OTHERS if "." not in key}


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(1, []), (2, [1]), (3, [1, 2]), (100, [30, 60, 90]), (120, [36, 72, 108])]
)
def test_usual_milestones(epochs: int, milestones: list[int], network, exported) -> None:
    config = transfer._resolve(config_for(exported, epochs=epochs), network, {})
    assert list(config.milestones or ()) == milestones


def test_light_networks_get_their_learning_rate(exported) -> None:
    config = transfer._resolve(config_for(exported), models.build("MobileNetV2", num_classes=4), {})
    assert config.lr == 0.01


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        transfer.run(transfer.parse(argv))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["network"]),
        (["nowhere"], ["network nowhere", "config.json"]),
        (["NET", "--data.name", "digits"], ["data.name", "3 channels"]),
        (["NET", "--data.name", "mnist"], ["data.name", "mnist"]),
        (["NET", "--data.name", "folder", "--data.root", "nowhere"], ["folder train", "nowhere"]),
        (["NET", "--epochs", "0"], ["epochs", "at least 1"]),
        (["NET", "--epochs", "ten"], ["epochs", "ten"]),
        (["NET", "--lr", ".nan"], ["lr", "nan"]),
        (["NET", "--lr", "0"], ["lr", "greater than 0"]),
        (["NET", "--momentum", "1"], ["momentum", "less than 1"]),
        (["NET", "--weight_decay", "-1"], ["weight_decay", "at least 0"]),
        (["NET", "--batch_size", "1"], ["batch_size", "at least 2"]),
        (["NET", "--milestones", "[30, 100]"], ["milestones", "from 1 to 99"]),
        (["NET", "--milestones", "[0, 30]"], ["milestones", "increasing"]),
        (["NET", "--seed", "-1"], ["seed"]),
        (["NET", "--device", "tpu"], ["device", "tpu"]),
        (["NET", "--data.name", "fake", "--output", "NET"], ["output", "a file, not a folder"]),
        (["NET", "--data.name", "fake", "--output", "NET/config.json/a.json"], ["output", "written"]),
        (["NET", "--data.name", "fake", "--output", "NET/config.json"], ["output", "new file", "--overwrite"]),
        *(
            (
                ["NET", "--data.name", "fake", "--output", f"NET/{name}", "--overwrite", "true"],
                ["output", "another file"],
            )
            for name in ("config.json", "model.safetensors")
        ),
        (["NET", "--data.name", "fake", "--output", "/proc/x.json"], ["output", "written", "'/proc/x.json'"]),
        (["NET", "--epoch", "3"], ["--epoch"]),
        (["NET", "stray"], ["stray"]),
    ],
)
def test_refused(argv: list[str], words: list[str], exported) -> None:
    message = refusal(*(part.replace("NET", str(exported)) for part in argv))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("value", ["x", [], {}, True, -1, 4, 1.5, float("nan"), None], ids=str)
@pytest.mark.parametrize("key", ["meta", "image_size"])
def test_a_wrong_value_of_config_json_is_named(key: str, value: object, exported, capsys) -> None:
    file = exported / "config.json"
    config = json.loads(file.read_text())
    del config["digest"]  # as in older versions, which wrote none
    (config if key == "meta" else config["meta"])[key] = value
    if (key, value) in (("meta", {}), ("image_size", None)):
        return
    file.write_text(json.dumps(config))
    assert transfer.main([str(exported), "--data.name", "fake"]) == 2
    error = capsys.readouterr().err
    assert str(file) in error and key in error and f"got {value!r}" in error and error.count("\n") == 1


PLUGIN = """
from sftn_fast import models

@models.register("of_a_plugin")
def of_a_plugin(**options):
    return models.build("resnet8", **options)
"""


def test_a_network_of_a_plugin(tmp_path: Path, forgotten_plugins: None) -> None:
    plugin, folder = tmp_path / "mine.py", tmp_path / "net"
    plugin.write_text(PLUGIN)
    plugins.load([str(plugin)])
    models.save(models.build("of_a_plugin"), str(folder))
    command = ["sftn_fast.transfer", str(folder), "--data.name", "fake", "--epochs", "1"]
    without = programs.run(*command)
    assert without.returncode == 2 and "of_a_plugin" in without.stderr
    done = programs.run(*command, "--plugins", f"[{plugin}]")
    assert done.returncode == 0, done.stderr
    assert json.loads(next(folder.glob("transfer-fake*.json")).read_text())["network"] == "of_a_plugin"


def test_a_damaged_network_is_refused(exported) -> None:
    weights = exported / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "network" in refusal(str(exported), "--data.name", "fake")


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_is_exit_code_1(exported, capsys) -> None:
    argv = [str(exported), "--data.name", "fake", "--epochs", "2", "--lr", "1e38", "--device", "cpu"]
    assert transfer.main(argv) == 1
    assert "error: the loss is" in capsys.readouterr().err
    assert not list(exported.glob("transfer-fake*"))


def test_a_full_disk_is_exit_code_1_and_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "transfer.json"))

    monkeypatch.setattr(transfer, "run", fail)
    assert transfer.main([str(tmp_path), "--data.name", "fake"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "transfer.json: No space left on device" in error


def test_on_the_command_line(exported, tmp_path: Path) -> None:
    output = tmp_path / "results" / "probe.json"
    command = ["sftn_fast.transfer", str(exported), "--data.name", "fake", "--epochs", "2"]
    done = programs.run(*command, "--output", str(output))
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert done.stdout.splitlines()[-1] == f"top1 {result['top1']:.2f} %  top5 {result['top5']:.2f} %  ({output})"
    refused = programs.run(*command, "--batch_size", "1")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: batch_size must be at least 2, got 1\n"


def test_an_epochs_mean_is_that_of_its_images(network, exported, capsys) -> None:
    """Weight the last, smaller batch by its images: 64 and 6."""
    config = config_for(exported, lr=1e-30, epochs=1)
    images = images_for(config)
    classifier = transfer.new_classifier(64, images.num_classes, config.seed)
    config = dataclasses.replace(config, milestones=())
    mean = transfer.train(classifier, transfer.feature_epochs(network, images, config), config)
    features = transfer.features_of(network, images.train.unaugmented())
    expected = F.cross_entropy(classifier(features.images), features.target).item()
    assert mean == pytest.approx(expected, rel=1e-5)
    assert f"ce {expected:.4f}" in capsys.readouterr().out


def test_a_training_that_diverged_is_said_to_have(exported, capsys) -> None:
    result = transfer.run(config_for(exported, lr=1e6))
    assert result["diverged"].startswith("training diverged: ")
    assert "warning: training diverged" in capsys.readouterr().out
    assert transfer.run(config_for(exported, lr=0.01))["diverged"] is None


def test_images_that_the_network_can_not_take_are_refused(tmp_path, monkeypatch, capsys) -> None:
    net = models.build("resnet8", num_classes=4)
    models.save(net, tmp_path / "net")

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("kernel size can't be greater than actual input size\nmore of it")

    monkeypatch.setattr(models.StagedNet, "forward_features", refuse)
    with pytest.raises(ConfigError, match=r"resnet8 can.t run on images of 16 x 16 pixels .kernel size") as error:
        transfer.run(config_for(tmp_path / "net"))
    assert "\n" not in str(error.value)
