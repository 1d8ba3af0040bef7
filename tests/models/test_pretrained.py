"""Weights that torchvision publishes, from torch.hub's cache or downloaded into it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from sftn_fast import models, train

torchvision_models = pytest.importorskip("torchvision.models")

NAME = "shufflenet_v2_x0_5"
WEIGHTS = torchvision_models.get_model_weights(NAME).IMAGENET1K_V1.value


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def original(num_classes=10):
    torch.manual_seed(5)
    return torchvision_models.get_model(NAME, weights=None, num_classes=num_classes)


def publish(monkeypatch, folder, state, digest=None):
    """Publish ``state`` at the URL of the weights, under a name with its checksum or another one."""
    file = folder / "weights.pth"
    torch.save(state, file)
    digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:10]
    monkeypatch.setattr(WEIGHTS, "url", file.rename(folder / f"shufflenet-{digest}.pth").as_uri())


@pytest.mark.parametrize("wanted", ["IMAGENET1K_V1", "DEFAULT"])
def test_weights_in_the_folder_of_torch_hub(wanted, hub):
    state = original().state_dict()
    torch.save(state, hub / WEIGHTS.url.rpartition("/")[2])
    net = models.load(f"torchvision:{wanted}", name=NAME, num_classes=10)
    assert not net.training
    for key, value in state.items():
        assert torch.equal(net.state_dict()[net.own_name(key)], value)


def test_weights_are_fetched_once_and_checked(hub, monkeypatch, tmp_path):
    publish(monkeypatch, tmp_path, original().state_dict())
    models.load("torchvision:DEFAULT", name=NAME, num_classes=10)
    (fetched,) = hub.iterdir()
    (tmp_path / fetched.name).unlink()
    models.load("torchvision:DEFAULT", name=NAME, num_classes=10)


def test_what_is_not_the_published_file_is_refused_and_not_kept(hub, monkeypatch, tmp_path):
    publish(monkeypatch, tmp_path, original().state_dict(), digest="0123456789")
    with pytest.raises(
        models.WeightsError, match=r"invalid hash value.*download file:.*remove that file and try again"
    ):
        models.load("torchvision:DEFAULT", name=NAME, num_classes=10)
    assert list(hub.iterdir()) == []


class Payload:
    """An object that runs code when it is unpickled."""

    def __reduce__(self):
        return print, ("the payload ran",)


def test_a_payload_never_runs(hub, capsys):
    torch.save({"fc.weight": Payload()}, hub / WEIGHTS.url.rpartition("/")[2])
    with pytest.raises(models.WeightsError, match="UnpicklingError") as caught:
        models.load("torchvision:DEFAULT", name=NAME, num_classes=10)
    assert "\n" not in str(caught.value)
    assert "the payload ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "wanted", "message"),
    [
        (NAME, "IMAGENET1K_V9", "no weights 'IMAGENET1K_V9' for shufflenet_v2_x0_5, only IMAGENET1K_V1, DEFAULT"),
        ("resnet8", "DEFAULT", r"torchvision:DEFAULT needs a network of torchvision's \(resnet18, .*\), not resnet8"),
    ],
)
def test_weights_that_are_not_published(name, wanted, message):
    net = models.build(name, num_classes=10)
    for call in (lambda: models.load_weights(net, f"torchvision:{wanted}"), lambda: require(name, wanted)):
        with pytest.raises(models.WeightsError, match=message):
            call()


def require(name, wanted):
    models.require_weights(f"torchvision:{wanted}", name)


def test_published_weights_are_required_without_being_fetched(hub):
    require(NAME, "DEFAULT")
    assert list(hub.iterdir()) == []


# Command line


def command(tmp_path, *more):
    options = f"--teacher {NAME} --student resnet8 --teacher_file torchvision:IMAGENET1K_V1 --data.name fake"
    options += " --data.train_size 8 --optim.batch_size 4 --epochs 1 --seeds [0] --stages [teacher,distill]"
    return [*options.split(), "--output", str(tmp_path / "run"), *more]


def test_a_published_teacher_is_measured_before_its_student_is_trained(hub, tmp_path, capsys):
    file = hub / WEIGHTS.url.rpartition("/")[2]
    torch.save(original().state_dict(), file)
    assert train.main(command(tmp_path)) == 0
    printed = capsys.readouterr().out
    teacher, student = (
        json.loads((tmp_path / "run" / "seed0" / stage / "result.json").read_text())
        for stage in ("teacher", "distill-teacher")
    )
    assert f"torchvision:IMAGENET1K_V1: top-1 {teacher['last']['top1']:.2f} %" in printed.partition("[2/2]")[0]
    held = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert (teacher["network"], teacher["identity"]["teacher_file"]) == (NAME, held)
    kept = models.load(tmp_path / "run" / "seed0" / "teacher")
    assert torch.equal(kept.head.classifier.weight, original().fc.weight)
    assert student["network"] == "resnet8"


@pytest.mark.parametrize("key", ["teacher_file", "sftn.init"])
def test_weights_that_are_not_published_are_refused_before_anything_is_trained(key, tmp_path, capsys):
    stages = "[teacher,sftn]" if key == "sftn.init" else "[teacher,distill]"
    options = ["--teacher_file", "null", f"--{key}", "torchvision:V9", "--stages", stages]
    assert train.main(command(tmp_path, *options)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {key}: torchvision has no weights 'V9' for {NAME}") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_other_classes_than_the_published_ones_are_refused(hub, tmp_path, capsys):
    torch.save(original(num_classes=1000).state_dict(), hub / WEIGHTS.url.rpartition("/")[2])
    assert train.main(command(tmp_path)) == 2
    error = capsys.readouterr().err
    assert "teacher_file: torchvision:IMAGENET1K_V1 does not fit shufflenet_v2_x0_5 with 10 classes" in error
    assert "head.classifier.weight: [1000, 1024] in the file, [10, 1024] in the network" in error
