"""Files for deployment: each format, its check, its refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from shallow import make_shallow
from torch import nn

from sftn_fast import data, models, predict
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.preprocessing import Preprocessing
from sftn_fast.export import FORMATS, formats
from sftn_fast.export.command import main
from sftn_fast.export.deployed import Deployed
from sftn_fast.utils import plugins
from sftn_fast.utils.checksummed import seal

PREPROCESSING = Preprocessing(32, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
ONE_OF_EACH_FAMILY = ["resnet8", "wrn_16_1", "vgg8", "MobileNetV1", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
ONE_OF_EACH_FAMILY += ["shufflenet_v2_x0_5"]
# Both begin with torch.export, which takes seconds for a network: each family goes through it once. That ONNX has an
# operator for each layer, `onnx-legacy` shows for all of them.
EXPORTED = {"onnx": ["wrn_16_1", "vgg8", "ShuffleV1"]}
EXPORTED["pt2"] = [name for name in ONE_OF_EACH_FAMILY if name not in EXPORTED["onnx"]]


def deployed(name: str, size: int = 32) -> Deployed:
    torch.manual_seed(0)
    network = models.build(name, num_classes=7)
    with torch.no_grad():
        network(torch.randn(8, 3, size, size))  # statistics of BatchNorm that are not the defaults
    return Deployed(network, PREPROCESSING).eval()


def test_names_are_those_of_the_writers():
    assert tuple(formats.WRITERS) == FORMATS


@pytest.mark.parametrize(
    ("name", "format_name"), [(name, each) for each in FORMATS for name in EXPORTED.get(each, ONE_OF_EACH_FAMILY)]
)
def test_every_family_in_every_format(format_name, name, tmp_path, monkeypatch):
    make_shallow(monkeypatch)
    if format_name.startswith("onnx"):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    file = tmp_path / f"net{formats.WRITERS[format_name].suffix}"
    difference = formats.write(format_name, deployed(name), 32, file)
    assert difference is not None and difference.largest <= 1e-4 * difference.scale
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_onnxruntime_classifies_the_digits_as_we_do(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    images = data.build(DataConfig("digits"), seed=0, batch_size=8, device="cpu")
    torch.manual_seed(0)
    network = models.build("resnet8", num_classes=10, in_channels=1)
    models.save(network, tmp_path, meta={"preprocessing": images.preprocessing.to_json()})
    assert main([str(tmp_path), "--format", "onnx"]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "deployed.onnx"), providers=["CPUExecutionProvider"])
    pixels = images.test.data.pixels.float() / 255
    theirs = session.run(None, {"pixels": pixels.numpy()})[0].argmax(1)
    with torch.no_grad():
        ours = torch.cat([models.load(tmp_path)(batch.images) for batch in images.test]).argmax(1)
    assert np.array_equal(theirs, ours.numpy())


class Odd(nn.Module):
    """Computes something else in every call."""

    num_classes, in_channels, name = 7, 3, "odd"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).repeat(1, 3)[:, :7] + torch.rand(())


def test_other_logits_leave_no_file(tmp_path):
    (tmp_path / "net.pt2").write_bytes(b"the one before")
    with pytest.raises(ConfigError, match=r"the pt2 file computes other logits than the network, by .*removed"):
        formats.write("pt2", Deployed(Odd(), PREPROCESSING).eval(), 32, tmp_path / "net.pt2")
    assert (tmp_path / "net.pt2").read_bytes() == b"the one before"
    assert len(list(tmp_path.iterdir())) == 1


class NoSymbol(Odd):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # a branch on values
            return x.mean((2, 3))
        return x.amax((2, 3))


def test_what_a_format_can_not_hold_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"^this network can't be written as pt2: [^\n]+$"):
        formats.write("pt2", Deployed(NoSymbol(), PREPROCESSING).eval(), 32, tmp_path / "net.pt2")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="--format onnx needs the package onnx: pip install onnx"):
        formats.write("onnx", deployed("resnet8"), 32, tmp_path / "net.onnx")


def test_refusals(tmp_path: Path, capsys):
    assert main([str(tmp_path), "--format", "pt2"]) == 2
    assert "STUDENT must be the folder of an exported network" in capsys.readouterr().err
    models.save(models.build("resnet8", num_classes=7), tmp_path, meta={"preprocessing": PREPROCESSING.to_json()})
    assert main([str(tmp_path), "--format", "pt2", "--output", str(tmp_path / "none" / "x.pt2")]) == 2
    assert "--output must be a file in an existing folder" in capsys.readouterr().err


OWN = """
from torch import nn

from sftn_fast import models


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.norm, self.out = nn.BatchNorm2d(5), nn.Linear(5, 7)

    def forward(self, x):
        return self.out(self.norm(self.second(self.first(x).relu())).mean((2, 3)))


@models.register("own_for_export")
def build(*, num_classes, in_channels):
    return models.as_staged(Own(), ["first", "norm"], "out")
"""


def exported_as(name: str, folder: Path) -> models.StagedNet:
    torch.manual_seed(0)
    network = models.build(name, num_classes=7).eval()
    models.save(network, folder, meta={"preprocessing": PREPROCESSING.to_json()})
    return network


def test_a_state_dict_loads_strictly_into_torchvisions_network(tmp_path):
    torchvision_models = pytest.importorskip("torchvision.models")
    network = exported_as("resnet18", tmp_path)
    assert main([str(tmp_path), "--format", "state_dict"]) == 0
    original = torchvision_models.resnet18(num_classes=7).eval()
    original.load_state_dict(load_file(tmp_path / "deployed.safetensors"), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(original(x), network(x))


@pytest.mark.usefixtures("forgotten_plugins")
def test_a_state_dict_loads_strictly_into_ones_own_network(tmp_path):
    plugin = tmp_path / "own_network_to_export.py"
    plugin.write_text(OWN)
    plugins.load([str(plugin)])
    network = exported_as("own_for_export", tmp_path / "student")
    assert main([str(tmp_path / "student"), "--format", "state_dict", "--plugins", str(plugin)]) == 0
    (module,) = (each for each in list(sys.modules.values()) if getattr(each, "__file__", None) == str(plugin))
    original = module.Own().eval()
    original.load_state_dict(load_file(tmp_path / "student" / "deployed.safetensors"), strict=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(original(x), network(x))


TIMM = {
    "timm:test_convnext": 32,
    "timm:test_vit:patch_size=8:depth=2:embed_dim=16:num_heads=2": 32,
}


def own_input_exported(name: str, folder: Path, channels: int) -> tuple[nn.Module, tuple[list[float], list[float]]]:
    """Export a network with an input of its own to ``folder``; return timm's network and its mean and deviation."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = models.build(name, num_classes=7, image_size=TIMM[name]).eval()
    original = timm.create_model(network.name.removeprefix("timm:"), num_classes=7, **network.arguments).eval()
    original.load_state_dict(models.export_state_dict(network))
    own = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    given = Preprocessing(32, 32, PREPROCESSING.mean[:channels], PREPROCESSING.std[:channels])
    network.in_channels, network.own_input = channels, models.change_of_input(given.mean, given.std, *own)
    models.save(network, folder, meta={"preprocessing": given.to_json()})
    return original, own


@pytest.mark.parametrize(
    ("format_name", "name", "channels"),
    [(each, name, 3) for name in TIMM for each in ("onnx", "pt2", "torchscript", "state_dict")]
    + [("state_dict", "timm:test_convnext", 1), ("onnx-legacy", "timm:test_convnext", 1)],
)
@torch.no_grad()
def test_a_timm_student_with_an_input_of_its_own_in_every_format(format_name, name, channels, tmp_path):
    for package in formats.WRITERS[format_name].needs:
        pytest.importorskip(package)
    original, (mean, std) = own_input_exported(name, tmp_path, channels)
    pixels = torch.rand(3, channels, 32, 32)
    expected = original((pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
    assert main([str(tmp_path), "--format", format_name]) == 0
    (file,) = tmp_path.glob("deployed.*")
    torch.testing.assert_close(written_logits(format_name, file, pixels, original), expected, rtol=1e-3, atol=1e-4)
    sample = tmp_path / "a.png"
    Image.fromarray((pixels[0].permute(1, 2, 0).expand(-1, -1, 3) * 255).byte().numpy()).save(sample)
    if channels == 3:
        shown = torch.from_numpy(np.array(Image.open(sample))).permute(2, 0, 1)[None] / 255
        logits = original((shown - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
        found = predict.classifier.Classifier(tmp_path).probabilities([sample])
        torch.testing.assert_close(found, logits.softmax(1), rtol=1e-4, atol=1e-5)


def written_logits(format_name: str, file: Path, pixels: torch.Tensor, original: nn.Module) -> torch.Tensor:
    """Return the logits of ``pixels`` by a file alone; of a state_dict, by timm's network with the file's tensors."""
    if format_name.startswith("onnx"):
        session = pytest.importorskip("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
    if format_name == "pt2":
        return torch.export.load(file).module()(pixels)
    if format_name == "torchscript":
        return torch.jit.load(str(file))(pixels)
    with safe_open(file, "pt") as written:
        mean, std = (torch.tensor(json.loads(written.metadata()[key])).view(-1, 1, 1) for key in ("mean", "std"))
    original.load_state_dict(load_file(file), strict=True)
    return original((pixels - mean) / std)


class Spectral(nn.Module):
    """A layer for which ONNX has no operator."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.special.bessel_j0(x)


@pytest.mark.parametrize("format_name", ["onnx", "onnx-legacy"])
@pytest.mark.usefixtures("forgotten_plugins")
def test_an_operator_that_onnx_lacks_is_one_line_and_leaves_nothing(format_name, tmp_path, monkeypatch, capfd):
    for package in formats.WRITERS[format_name].needs:
        pytest.importorskip(package)

    @models.register("without_symbol")
    def build(*, num_classes: int, in_channels: int) -> models.StagedNet:
        layers = nn.Sequential(nn.Conv2d(in_channels, 4, 3), Spectral(), nn.Conv2d(4, 4, 3), nn.Flatten())
        return models.as_staged(nn.Sequential(*layers, nn.Linear(3136, num_classes)), ["1", "2"], "4")

    monkeypatch.chdir(tmp_path)
    exported_as("without_symbol", tmp_path / "student")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(tmp_path / "student"), "--format", format_name]) == 2
    out, error = capfd.readouterr()
    assert out == "" and error.count("\n") == 1 and error.startswith("error: this network can't be written as onnx")
    assert "bessel_j0" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_a_student_of_a_newer_version_is_refused_in_one_line(tmp_path, capsys):
    """Whatever its other keys are."""
    exported_as("resnet8", tmp_path)
    (tmp_path / "config.json").write_text(seal({"format": 99, "network": "resnet8"}))
    message = "has format 99, this version reads up to 3: update sftn_fast"
    with pytest.raises(models.WeightsError, match=message):
        models.load(tmp_path)
    with pytest.raises(models.WeightsError, match=message):
        models.load_weights(models.build("resnet8", num_classes=7), tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for program, arguments in ((main, ["--format", "pt2"]), (predict.main, [str(tmp_path / "a.png")])):
        assert program([str(tmp_path), *arguments]) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.count("\n") == 1 and message in error
