"""Networks on disk: the round trip, and every kind of damage."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sftn_fast
from sftn_fast import models
from sftn_fast.models.export import CONFIG, WEIGHTS

FAMILIES = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "shufflenet_v2_x0_5"]


def trained(name: str = "resnet8", **options: int) -> models.StagedNet:
    """Return a network with the statistics of a batch."""
    torch.manual_seed(0)
    net = models.build(name, **{"num_classes": 5, "in_channels": 1, **options})
    net(torch.randn(4, net.in_channels, 16, 16))
    return net.eval()


def custom() -> models.StagedNet:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    return models.as_staged(module, ["1", "2"], "4").eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    """An export of ``trained()``, in a folder with spaces in its name."""
    folder = tmp_path / "a run, ünïcode"
    models.save(trained(), folder, meta={"accuracy": 71.25, "image_size": 16})
    return folder


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_round_trip_gives_the_same_bits(name, tmp_path):
    net, x = trained(name), torch.randn(2, 1, 16, 16)
    models.save(net, tmp_path)
    for path in (tmp_path, tmp_path / WEIGHTS, str(tmp_path)):
        again = models.load(path)
        assert not again.training
        assert (again.name, again.num_classes, again.in_channels) == (name, 5, 1)
        assert torch.equal(again(x), net(x))


def test_config_says_what_the_weights_are(folder):
    config = models.read_config(folder)
    assert len(config.pop("sha256")) == len(config.pop("digest")) == 64
    assert config == {
        "format": 1,
        "sftn_fast": sftn_fast.__version__,
        "name": "resnet8",
        "custom": False,
        "num_classes": 5,
        "in_channels": 1,
        "meta": {"accuracy": 71.25, "image_size": 16},
    }
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


def test_saving_leaves_the_network_as_it_was(tmp_path):
    net = trained().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    models.save(net, tmp_path)
    assert net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_home_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    models.save(trained(), "~/export")
    assert (tmp_path / "export" / WEIGHTS).is_file()
    models.load("~/export")


def test_the_configuration_of_a_home_folder_is_found(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert models.read_config(f"~/{folder.name}")["name"] == "resnet8"


def test_the_home_of_nobody_is_no_place():
    with pytest.raises(FileNotFoundError, match=r"no weights at ~nobody-of-this-name/teacher\.pth"):
        models.load("~nobody-of-this-name/teacher.pth", name="resnet8", num_classes=5)


@torch.no_grad()
def test_weights_beside_the_configuration_of_another_library(folder):
    """Accept the files of timm's networks on Hugging Face, which have the same names as ours."""
    net = models.load(folder)
    (folder / CONFIG).write_text(json.dumps({"architecture": "resnet8", "num_classes": 5, "global_pool": "avg"}))
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(models.load(folder / WEIGHTS, name="resnet8", num_classes=5, in_channels=1)(x), net(x))
    with pytest.raises(models.WeightsError, match=r"not the config.json of an exported network.*name the file itself"):
        models.load(folder)


def test_a_newer_export_replaces_the_older(folder):
    models.save(trained("wrn_16_1"), folder)
    assert models.load(folder).name == "wrn_16_1"


def test_weights_that_share_memory(tmp_path):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), conv, nn.Sequential(conv, nn.ReLU()), nn.Flatten(), nn.Linear(144, 2))
    net, x = models.as_staged(module, ["0", "2"], "4"), torch.randn(2, 1, 8, 8)
    expected = net(x)
    models.save(net, tmp_path)
    conv.weight.data.zero_()
    models.load_weights(net, tmp_path)
    assert torch.equal(net(x), expected)


def flip_bit(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("position", [0, 9, 2000, 100_000, -1])
def test_one_flipped_bit_is_noticed(folder, position):
    flip_bit(folder / WEIGHTS, position)
    for load in (models.load, lambda path: models.load_weights(trained(), path)):
        with pytest.raises(models.WeightsError, match=r"model\.safetensors is damaged.*sha256"):
            load(folder)


def test_safetensors_itself_does_not_notice_a_flipped_bit(folder):
    """Show why there is a checksum: without it this file would load."""
    flip_bit(folder / WEIGHTS, -1)
    (folder / CONFIG).unlink()
    models.load(folder / WEIGHTS, name="resnet8", num_classes=5, in_channels=1)


@pytest.mark.parametrize("length", [0, 7, 500, -1])
def test_a_truncated_file_is_noticed(folder, length):
    file = folder / WEIGHTS
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(models.WeightsError, match="damaged"):
        models.load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(models.WeightsError, match="damaged"):
        models.load(file, name="resnet8", num_classes=5, in_channels=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:40], "config.json is damaged"),
        (lambda text: "", "config.json is damaged"),
        (lambda text: "[]", "config.json is damaged: it holds no JSON object"),
        (lambda text: text.replace("71.25", "72.25"), "config.json is damaged: its content does not fit the checksum"),
    ],
)
def test_a_damaged_config_is_noticed(folder, change, message):
    file = folder / CONFIG
    file.write_text(change(file.read_text()))
    with pytest.raises(models.WeightsError, match=message):
        models.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"num_classes"', '"classes"'), "'num_classes' is missing"),
        *(
            (lambda text, key=key, value=value: json.dumps(json.loads(text) | {key: value}), f"config.json .*{key}")
            for key in ("format", "name", "custom", "num_classes", "in_channels", "sha256", "meta")
            for value in (
                None,
                [],
                -1,
                1.5,
                float("nan"),
                [] if key in ("name", "sha256") else "x",
                1 if key == "custom" else True,
            )
        ),
        (lambda text: text.replace('"format": 1', '"format": 4'), "format 4, this version reads up to 3"),
        (lambda text: text.replace('"resnet8"', '"resnet9"'), "unknown network 'resnet9'"),
        (lambda text: text.replace('"resnet8"', '"resnet14"'), "does not fit resnet14"),
        (lambda text: text.replace('"num_classes": 5', '"num_classes": 6'), r"head.fc.weight: \[5, 64\] in the file"),
    ],
)
def test_a_wrong_config_is_noticed(folder, change, message):
    file = folder / CONFIG
    config = json.loads(change(file.read_text()))
    del config["digest"]
    file.write_text(json.dumps(config))  # as in older versions, which wrote no checksum of config.json
    with pytest.raises(ValueError, match=message):
        models.load(folder)


def test_missing_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        models.load(tmp_path / "nowhere", name="resnet8", num_classes=5)
    (folder / WEIGHTS).rename(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        models.load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"no config.json in"):
        models.load(folder)
    with pytest.raises(models.WeightsError, match="give name and num_classes"):
        models.load(folder / "other.safetensors")
    assert models.load(folder / "other.safetensors", name="resnet8", num_classes=5, in_channels=1).name == "resnet8"


def test_weights_are_required_without_being_read(folder, tmp_path):
    (folder / WEIGHTS).write_bytes(b"damaged")
    for path in (folder, folder / WEIGHTS, str(folder)):
        models.require_weights(path, "resnet8")
    (folder / WEIGHTS).rename(tmp_path / "other.pth")
    models.require_weights(tmp_path / "other.pth", "resnet8")
    for path in (folder, folder / WEIGHTS, tmp_path / "nowhere.pth"):
        with pytest.raises(FileNotFoundError, match="no weights at"):
            models.require_weights(path, "resnet8")


@pytest.mark.parametrize("asked", [{"name": "resnet14"}, {"num_classes": 10}, {"in_channels": 3}])
def test_another_network_than_asked_for(folder, asked):
    ((key, value),) = asked.items()
    with pytest.raises(models.WeightsError, match=f"holds a network with {key} .*, not {value!r}"):
        models.load(folder, **asked)
    assert models.load(folder, name="resnet8", num_classes=5, in_channels=1).name == "resnet8"


@torch.no_grad()
def test_a_custom_network_needs_its_builder(tmp_path):
    net, x = custom(), torch.randn(2, 1, 8, 8)
    models.save(net, tmp_path)
    assert models.read_config(tmp_path)["custom"] is True
    with pytest.raises(models.WeightsError, match=r"custom network.*models.load_weights\(net, "):
        models.load(tmp_path)
    other = custom()
    assert not torch.equal(other(x), net(x))
    models.load_weights(other, tmp_path)
    assert torch.equal(other(x), net(x))


def test_meta_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        models.save(trained(), tmp_path / "export", meta={"accuracy": torch.tensor(1.0)})
    assert not (tmp_path / "export").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's file size limit")
def test_a_full_disk_leaves_the_older_export(folder):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            models.save(trained("wrn_16_1"), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_interrupted_between_its_two_files_an_export_is_refused(folder, monkeypatch):
    replace = Path.replace

    def stop_at_config(self, target):
        if target.name == CONFIG:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", stop_at_config)
    with pytest.raises(KeyboardInterrupt):
        models.save(trained("wrn_16_1"), folder)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    with pytest.raises(models.WeightsError, match="sha256"):
        models.load(folder)


def test_without_safetensors_the_message_says_what_to_do(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (lambda: models.save(trained(), folder), lambda: models.load(folder)):
        with pytest.raises(ImportError, match="pip install safetensors"):
            call()


def test_json_is_for_people_too(folder):
    text = (folder / CONFIG).read_text()
    assert text.endswith("}\n")
    assert text.splitlines()[3].strip() == '"name": "resnet8",'
    assert json.loads(text)["meta"]["accuracy"] == 71.25


@pytest.mark.parametrize("call", [models.load, models.load_export, models.read_config, models.verify])
def test_a_path_of_nothing_is_a_missing_file(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="nofile"):
        call("nofile")
    with pytest.raises(FileNotFoundError, match="the path of the network is empty"):
        call("")
