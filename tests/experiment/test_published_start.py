"""Trainings that start from published weights, with the normalisation that these belong to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sftn_fast import data, models, train
from sftn_fast.config import DataConfig
from sftn_fast.data.sources import fake
from sftn_fast.models.own_input import OwnInput, after, change_of_input
from sftn_fast.utils.checksummed import seal

timm = pytest.importorskip("timm")
hub = pytest.importorskip("huggingface_hub")

TINY = "--data.name fake --data.train_size 8 --data.image_size 32 --optim.batch_size 4 --epochs 1 --seeds 0"
NET = "timm:test_efficientnet"
MEAN, STD = (0.5, 0.25, 0.75), (0.5, 0.25, 0.125)


@pytest.fixture
def offline(monkeypatch, tmp_path) -> Path:
    """An empty cache of the Hugging Face Hub, and no connection."""
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cache(folder: Path, net: torch.nn.Module) -> Path:
    """Put the weights of ``net`` into the cache ``folder``, as a download does."""
    repository = folder / ("models--" + net.pretrained_cfg["hf_hub_id"].replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(net.state_dict(), snapshot / "model.safetensors")
    return snapshot / "model.safetensors"


def original(name: str = NET, **options) -> torch.nn.Module:
    torch.manual_seed(5)
    return timm.create_model(name.removeprefix("timm:"), **options)


def command(tmp_path: Path, *more: str) -> list[str]:
    return [*TINY.split(), "--student", "resnet8", "--output", str(tmp_path / "run"), *more]


# The change of the input


def test_a_network_sees_images_by_its_own_mean_and_deviation():
    pixels = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    data = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))]
    own = [torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (MEAN, STD)]
    change = change_of_input((0.1, 0.2, 0.3), (0.3, 0.2, 0.1), MEAN, STD)
    seen = change(((pixels - data[0]) / data[1]).float())
    assert seen.dtype == torch.float32
    assert torch.allclose(seen.double(), (pixels - own[0]) / own[1], atol=2e-6)
    assert change_of_input(MEAN, STD, MEAN, STD) is None


def test_grey_images_become_as_many_channels_as_the_network_has():
    pixels = torch.rand(2, 1, 8, 8)
    change = change_of_input((0.5,), (0.25,), MEAN, STD)
    own = [torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD)]
    assert torch.allclose(change((pixels - 0.5) / 0.25), (pixels - own[0]) / own[1], atol=1e-5)
    with pytest.raises(ValueError, match="weights are for images of 3 channels, and these have 2"):
        change_of_input((0.5, 0.5), (1.0, 1.0), MEAN, STD)


def test_two_changes_are_one():
    first, second, images = (
        OwnInput([2.0, 3.0], [1.0, 0.5]),
        OwnInput([0.5, 0.25], [3.0, -1.0]),
        torch.randn(1, 2, 3, 3),
    )
    assert torch.allclose(after(second, first)(images), second(first(images)))
    assert after(None, first) is first and after(second, None) is second and after(None, None) is None


def test_an_export_keeps_the_change_and_a_damaged_one_is_refused(tmp_path):
    net = models.build("resnet8", num_classes=5).eval()
    net.own_input, net.in_channels = OwnInput([2.0, 3.0, 4.0], [1.0, 0.5, 0.0]), 1
    images = torch.randn(2, 1, 16, 16)
    models.save(net, tmp_path)
    loaded = models.load(tmp_path)
    assert (loaded.in_channels, models.read_config(tmp_path)["format"]) == (1, 3)
    with torch.no_grad():
        assert torch.equal(loaded(images), net(images))
        assert torch.equal(loaded.forward_features(images).logits, net(images))
        assert torch.equal(torch.jit.script(net)(images), net(images))
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("crc32", None)
    for damage in ({"scale": [1.0], "shift": []}, {"scale": [0.0], "shift": [1.0]}, {"scale": "x", "shift": "x"}):
        (tmp_path / "config.json").write_text(seal(config | {"own_input": damage}))
        with pytest.raises(models.WeightsError, match="is damaged: 'own_input' must have a scale and a shift"):
            models.load(tmp_path)


# Weights


def test_timms_weights_are_adapted_by_timm(offline):
    state = original("timm:test_vit")
    cache(offline, state)
    net = models.build("timm:test_vit", num_classes=1000, image_size=32)
    before = torch.random.get_rng_state()
    models.load_weights(net, "timm:DEFAULT")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(net.body.blocks[0].mlp.fc1.weight, state.blocks[0].mlp.fc1.weight)
    assert net.body.pos_embed.shape[1] < state.pos_embed.shape[1]
    for wanted in ("timm:r160_in1k", "timm:DEFAULT"):
        models.require_weights(wanted, "timm:test_vit")
    for path, name, message in (
        ("timm:r1_in1k", "timm:test_vit", "has no weights 'r1_in1k', only r160_in1k"),
        ("timm:DEFAULT", "resnet8", "timm:DEFAULT needs a network of timm's, such as timm:resnet18, not resnet8"),
    ):
        with pytest.raises(models.WeightsError, match=message):
            models.require_weights(path, name)


@pytest.mark.parametrize("name", ["test_efficientnet", "deit_tiny_distilled_patch16_224"])
def test_another_number_of_classes_starts_all_but_the_head_and_says_so(name, offline):
    small = {} if name.startswith("test") else {"embed_dim": 24, "depth": 2, "num_heads": 2}
    cache(offline, original(f"timm:{name}", **small))
    arguments = "".join(f":{key}={value}" for key, value in small.items())
    net = models.build(f"timm:{name}{arguments}", num_classes=5, image_size=32)
    heads = {key: value.clone() for key, value in net.state_dict().items() if key.startswith(net.head_names)}
    with pytest.raises(models.WeightsError, match="does not fit"):
        models.load_weights(net, "timm:DEFAULT")
    said: list[str] = []
    models.load_weights(net, "timm:DEFAULT", keep_head=True, say=said.append)
    assert "loaded all but the classifier" in said[0] and "1000 classes, this network 5" in said[0]
    own = {key for key, value in heads.items() if value.shape[:1] == (5,)}
    assert own and all(torch.equal(net.state_dict()[key], heads[key]) for key in own)


def test_weights_without_a_classifier_only_start_a_training(offline, monkeypatch):
    backbone = original("timm:test_convnext", num_classes=0)
    cache(offline, backbone)
    config = timm.get_pretrained_cfg("test_convnext")
    monkeypatch.setattr(config, "num_classes", 0)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda name: config)
    net = models.build("timm:test_convnext", num_classes=5)
    with pytest.raises(models.WeightsError, match="has no classifier; it can only start a training"):
        models.load_weights(net, "timm:DEFAULT")
    head = net.head.classifier.get_parameter("net.head.fc.weight").clone()
    models.load_weights(net, "timm:DEFAULT", keep_head=True)
    assert torch.equal(net.head.classifier.get_parameter("net.head.fc.weight"), head)
    assert torch.equal(net.state_dict()[net.own_name("stem.0.weight")], backbone.stem[0].weight)


# Command line


def test_a_run_starts_from_published_weights(offline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fake, "TEST_IMAGES", 16)
    weights = original()
    file = cache(offline, weights)
    options = ["--teacher", NET, "--teacher_pretrained", "true", "--stages", "teacher", "sftn"]
    assert train.main(command(tmp_path, *options)) == 0
    printed = capsys.readouterr().out
    assert "timm:DEFAULT: loaded all but the classifier" in printed
    assert f"timm:DEFAULT: {NET} sees images by its own mean and deviation, not by those of fake" in printed
    images = data.build(DataConfig("fake", train_size=8), seed=0, batch_size=4, device="cpu")
    scale = [theirs / own for theirs, own in zip(images.preprocessing.std, (0.229, 0.224, 0.225), strict=True)]
    for job in ("teacher", "sftn"):
        exported = models.read_config(tmp_path / "run" / "seed0" / job)
        assert exported["own_input"]["scale"] == pytest.approx(scale, rel=1e-5)
    result = json.loads((tmp_path / "run" / "seed0" / "teacher" / "result.json").read_text())
    assert result["identity"]["pretrained"]["teacher"].startswith("sha256:")

    # Finished jobs are kept, unless the weights are others.
    assert train.main(command(tmp_path, *options)) == 0
    assert "not trained again" in capsys.readouterr().out
    save_file({**weights.state_dict(), "classifier.bias": torch.ones(1000)}, file)
    assert train.main(command(tmp_path, *options)) == 2
    assert "pretrained" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--teacher timm:test_resnet --teacher_pretrained true",
            r"error: teacher_pretrained: timm:DEFAULT of .* can't be",
        ),
        (
            "--teacher resnet8 --teacher_pretrained true",
            "error: teacher_pretrained: nobody publishes weights of resnet8",
        ),
        ("--student timm:test_resnet --student_pretrained true", r"error: student_pretrained: timm:DEFAULT of"),
        ("--teacher timm:test_resnet --teacher_file timm:DEFAULT", "error: teacher_file: timm:DEFAULT of"),
        ("--teacher timm:test_resnet --sftn.init timm:DEFAULT", "error: sftn.init: timm:DEFAULT of"),
        ("--teacher timm:hf-hub:owner/name", "error: teacher: the description of timm:hf-hub:owner/name can't be read"),
        ("--teacher timm:none", "error: teacher: unknown network 'timm:none'"),
        (
            "--teacher resnet18 --teacher_pretrained true --stages student",
            "error: teacher_pretrained must be false where no stage trains a new teacher",
        ),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_trained(options, message, offline, tmp_path, capsys):
    assert train.main(command(tmp_path, *options.split())) == 2
    error = capsys.readouterr().err
    assert re.match(message, error) and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            f"--teacher {NET} --teacher_pretrained true",
            f"error: teacher_pretrained: timm:DEFAULT of {NET} can't be loaded",
        ),
        ("--teacher timm:hf-hub:owner/name", "error: teacher: the description of timm:hf-hub:owner/name can't be read"),
    ],
)
def test_without_a_connection_nothing_is_tried_twice(options, message, offline, tmp_path, capfd, monkeypatch):
    def unreachable(*args, **how):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(hub.file_download, "get_hf_file_metadata", lambda *args, **how: pytest.fail("tried again"))
    assert train.main(command(tmp_path, *options.split())) == 2
    error = capfd.readouterr().err
    assert error.startswith(message) and "Name or service not known" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
