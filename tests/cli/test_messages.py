"""What a refusal suggests: the name that was meant, or what there is instead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sftn_fast import cli, models
from sftn_fast.cli import messages
from sftn_fast.cli.keys import keys_of
from sftn_fast.cli.network_names import NETWORKS, describe, twin_of
from sftn_fast.config import Config, ConfigError


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        cli.parse(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--lr", "did you mean --optim.lr?"),
        ("--learning_rate", "did you mean --optim.lr?"),
        ("--optim.learning-rate", "did you mean optim.lr".replace("optim", "--optim")),
        ("--epoch", "did you mean --epochs?"),
        ("--batch_size", "did you mean --optim.batch_size?"),
        ("--batch-size", "did you mean --optim.batch_size?"),
        ("--Epochs", "did you mean --epochs?"),
        ("--optim.batchsize", "did you mean --optim.batch_size?"),
        ("--optim.milestone", "did you mean --optim.milestones?"),
        ("--data.names", "did you mean --data.name?"),
        ("--data.batch_size", "did you mean --optim.batch_size?"),
        ("--dataset", "did you mean --data.name?"),
        ("--model_s", "did you mean --student?"),
        ("--path_t", "did you mean --teacher_file?"),
        ("--gpus", "did you mean --devices?"),
        ("--fp16", "did you mean --engine.amp?"),
        ("--seed", "did you mean --seeds?"),
        ("--data.transforms", "not available here: images are cropped and flipped, and changed as data.auto_augment"),
        ("--mixup", "did you mean --data.mixup?"),
        ("--cutmix-alpha", "did you mean --data.cutmix?"),
        ("--smoothing", "did you mean --data.label_smoothing?"),
        ("--aa", "did you mean --data.auto_augment"),
        ("--reprob", "did you mean --data.random_erasing"),
        ("--ra-magnitude", "did you mean --data.randaugment_magnitude"),
        ("--optim.type", "optim has name, arguments, lr, momentum, "),
        ("--optimizer", "did you mean --optim.name?"),
        ("--adamw", "did you mean --optim.name?"),
        ("--optim.betas", "did you mean --optim.arguments?"),
        ("--data.color_jitter", "not available here"),
        ("--label_smoothing", "did you mean --data.label_smoothing?"),
        ("--ema", "ema is a group: --ema.decay, "),
        ("--model_ema", "did you mean --ema.decay?"),
        ("--swa", "not available here: weights are averaged by ema.decay"),
        ("--wandb", "did you mean --logger?"),
        ("--optim", "optim is a group: --optim.name, --optim.arguments, --optim.lr, "),
        ("--optim.foo", "optim has name, arguments, lr, momentum, "),
        ("--nothing.like.it", "--help lists all"),
        ("--base", "unknown option --base"),
        ("--sftn.stages", "unknown option --sftn.stages, which is now called --sftn.branch_stages"),
    ],
)
def test_an_unknown_option(option: str, says: str) -> None:
    for argv in ([option, "3"], [f"{option}=3"]):
        message = refusal(*argv)
        assert f"unknown option {option}" in message and says in message, message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("epoch: 3\n", "unknown key 'epoch'; did you mean epochs?"),
        ("optim:\n  learning_rate: 3\n", "unknown key 'optim.learning_rate'; did you mean optim.lr?"),
        ("optim:\n  optimizer: adam\n", "unknown key 'optim.optimizer'; did you mean optim.name?"),
        ("data:\n  transforms: 2\n", "unknown key 'data.transforms', which is not available here"),
        ("lr: 3\n", "did you mean optim.lr?"),
        ("optim:\n  lr:\n    value: 3\n", "optim.lr must be a number or null, got {'value': 3}"),
        ("optim:\n  lr: fast\n", "optim.lr must be a number or null, got 'fast'"),
        ("epochs: 0\n", "epochs must be at least 1, got 0"),
        ("optim:\n  lr: -1\n", "optim.lr must be a finite number"),
        ("teacher: ResNet34\n", "did you mean resnet34"),
        ("distill: kdd\n", "unknown method 'kdd'"),
        ("base: demoo\n", "base must be an existing YAML file, or one of"),
        ("config: demo\n", "config is for the command line; in a recipe use base"),
        ("print_config: true\n", "print_config is for the command line"),
        ("help: true\n", "unknown key 'help'"),
        ("sftn:\n  stages: [1]\n", "unknown key 'sftn.stages', which is now called sftn.branch_stages"),
    ],
)
def test_a_recipe_is_named_with_its_key(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refusal("--config", str(path))
    assert message.startswith(f"{path}: ") and says in message, message


def test_the_recipe_that_gave_the_value_is_named(tmp_path: Path) -> None:
    base, mine = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("epochs: 0\nstudent: resnet8\n")
    mine.write_text(f"base: {base}\nstudent: nothing\n")
    assert refusal("--config", str(mine)).startswith(f"{base}: epochs ")
    assert refusal("--config", str(mine), "--epochs", "3").startswith(f"{mine}: student ")
    assert refusal("--config", str(mine), "--epochs", "-3").startswith("epochs ")
    base.write_text("nonsense: 1\n")
    assert refusal("--config", str(mine)).startswith(f"{base}: unknown key 'nonsense'")
    mine.write_text("base: nowhere.yaml\n")
    assert refusal("--config", str(mine)).startswith(f"{mine}: base must be ")


def test_recipes_one_after_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("base: cifar100\nepochs: 3\nstudent: vgg8\n")
    second.write_text("epochs: 4\n")
    config, name = cli.parse(["--config", str(first), "--config", str(second), "--seeds", "[7]"])
    assert (config.epochs, config.student, config.data.name, config.seeds) == (4, "vgg8", "cifar100", (7,))
    assert name == f"{first} and {second}"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("RESNET18", ["ResNet18 (for images of 32 pixels)", "resnet18 (torchvision's, for images of 224 pixels)"]),
        ("ResNet34", ["resnet34 (torchvision's, for images of 224 pixels)"]),
        ("mobilenetv2", ["MobileNetV2 (for images of 32 pixels)", "mobilenet_v2 (torchvision's"]),
        ("MobileNet-V2", ["MobileNetV2", "mobilenet_v2"]),
        ("Resnet50", ["ResNet50 (for images of 32 pixels)", "resnet50 (torchvision's"]),
        ("wrn-16-2", ["wrn_16_2"]),
        ("WRN_40_2", ["wrn_40_2"]),
        ("resnet8X4", ["resnet8x4"]),
        ("shufflev1", ["ShuffleV1"]),
        ("VGG-13", ["vgg13"]),
        ("vgg13_bn", ["vgg13"]),
    ],
)
@pytest.mark.parametrize("key", ["--teacher", "--student"])
def test_an_unknown_network(key: str, name: str, near: list[str]) -> None:
    message = refusal(key, name)
    hint = message.partition("did you mean ")[2]
    assert f"{key[2:]} must be one of" in message and all(each in hint for each in near), message


def test_an_unknown_network_among_several() -> None:
    message = refusal("--collaborate.networks", "[resnet8,resnet9]")
    assert "collaborate.networks must be one of" in message and "did you mean resnet8" in message


def test_a_plugin_may_bring_the_network() -> None:
    assert cli.parse(["--teacher", "mine", "--plugins", "[mine.py]"])[0].teacher == "mine"


@pytest.mark.usefixtures("forgotten_plugins")
def test_the_names_are_those_of_the_registry() -> None:
    assert sorted(NETWORKS) == sorted(models.names())


def test_networks_that_look_the_same() -> None:
    assert {name: twin_of(name) for name in NETWORKS if twin_of(name)} == {
        "ResNet18": "resnet18",
        "resnet18": "ResNet18",
        "ResNet50": "resnet50",
        "resnet50": "ResNet50",
        "MobileNetV2": "mobilenet_v2",
        "mobilenet_v2": "MobileNetV2",
    }
    assert describe("mine") == "mine" and twin_of("mine") is None
    for name, other in (("ResNet50", "resnet50"), ("resnet50", "ResNet50")):
        (line,) = cli.describe_twins(cli.parse(["--teacher", name])[0])
        assert line == f"{describe(name)} is not the same network as {describe(other)}"
    assert cli.describe_twins(cli.parse([])[0]) == []


def test_an_unknown_recipe() -> None:
    message = refusal("--config", "nofile.yaml")
    assert "config must be an existing YAML file" in message and "'nofile.yaml'" in message
    assert "did you mean fashion_mnist" in refusal("--config", "fashionmnist")
    assert "did you mean imagenet" in refusal("--config", "recipes/ImageNet.yaml")
    for name in ("", "a" * 5000, "~nosuchuser/a.yaml", "a\0b"):
        assert "config must be an existing YAML file" in refusal("--config", name)


def test_suggestions_name_keys_that_there_are() -> None:
    keys = keys_of(Config)
    assert set(messages.SYNONYMS.values()) <= set(keys)
    own_names = {key.rpartition(".")[2] for key in keys if key.startswith(("optim.", "data.")) or "." not in key}
    assert not own_names & (set(messages.SYNONYMS) - {"temperature"})
    assert not {name for names in messages.ABSENT for name in names} & own_names - {"name"}


@pytest.mark.parametrize("text", ["0.123456789", "1e-20", "0.30000000000000004", "123456789.5", "0.1", "1", "1e300"])
def test_weights_are_kept_exactly(text: str) -> None:
    distill = cli.parse(["--distill", "crd", "-r", text, "-a", text, "-b", text])[0].distill
    assert [float(term.partition("=")[2]) for term in distill.split(",")] == [float(text)] * 3
    assert cli.parse(["--distill", "kd", "-r", "0.1", "-a", "0.9"])[0].distill == "ce=0.1,kd=0.9"


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["--method", "KD"], "kd"),
        (["--method", "OFD"], "oh"),
        (["--method", "FitNets"], "fitnet"),
        (["--distill", "kd=1,ReviewKD=2"], "reviewkd"),
        (["--distill", "CE=1"], "ce"),
        (["--distill", "CRD", "-b", "1"], "crd"),
        (["--distill", "kd:Temperature=2"], "temperature"),
        (["--distill", "ft:variant=Paper"], "paper"),
        (["--methods", "kd", "Attention"], "at"),
        (["--data.name", "CIFAR-100"], "cifar100"),
        (["--optim.schedule", "Cosine"], "cosine"),
        (["--engine.amp", "BF16"], "bf16"),
        (["--engine.threads", "Auto"], "auto"),
        (["--stages", "[Teacher]"], "teacher"),
        (["--stage_epochs", "{Teacher: 3}"], "teacher"),
    ],
)
def test_a_name_of_other_capitals(argv: list[str], meant: str) -> None:
    assert refusal(*argv).endswith(f"; did you mean {meant}?")


def test_a_name_that_is_like_no_other() -> None:
    assert "did you mean" not in refusal("--method", "telepathy")
    assert "did you mean" not in refusal("--engine.amp", "none")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "network is missing; usage: "),
        (["--network", "x"], "network is given without --network; usage: "),
        (["x", "--network", "y"], "network is given without --network; usage: "),
        (["x", "--networks", "y"], "unknown option --networks; --help lists all"),
    ],
)
def test_an_argument_without_a_name(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        cli.parse_transfer(argv, "")
