from __future__ import annotations

import sys

import pytest
import torch

from sftn_fast.config import DATASETS, ConfigError, DataConfig
from sftn_fast.data import source
from sftn_fast.data.source import Images, Source

PIXELS = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])


def a_source(test):
    good = Images(PIXELS, LABELS)
    return Source("made_up", 5, good, test, mean=(0.5,) * 3, std=(0.2,) * 3, crop_padding=4, flip=True)


def with_label(place, label):
    labels = LABELS.clone()
    labels[place] = label
    return Images(PIXELS, labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (with_label(2, 5), r"the test set has 1 labels outside 0..4, the first at image 2: 5"),
        (with_label(1, -1), r"the test set has 1 labels outside 0..4, the first at image 1: -1"),
        (with_label(slice(3, None), 99), r"the test set has 3 labels outside 0..4, the first at image 3: 99"),
        (Images(PIXELS, LABELS[:5]), r"an int64 label for each of its 6 images, got torch.int64 \[5\]"),
        (Images(PIXELS, LABELS.float()), r"an int64 label for each of its 6 images, got torch.float32 \[6\]"),
        (Images(PIXELS.float(), LABELS), r"square uint8 images of 3 channels, got torch.float32"),
        (Images(PIXELS[:, :1], LABELS), r"square uint8 images of 3 channels, got torch.uint8 \[6, 1, 8, 8\]"),
        (Images(PIXELS[..., :7], LABELS), r"square uint8 images of 3 channels, got torch.uint8 \[6, 3, 8, 7\]"),
        (Images(PIXELS[0], LABELS), r"square uint8 images of 3 channels, got torch.uint8 \[3, 8, 8\]"),
    ],
)
def test_faulty_images_and_labels_are_refused(images, message):
    with pytest.raises(ConfigError, match="made_up: " + ".*" + message):
        a_source(test=images)


def test_every_data_set_of_the_configuration_is_registered():
    assert set(source.names()) == set(DATASETS)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'fake' is registered twice"):
        source.register("fake")(a_source)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("digits", "sklearn.datasets", "scikit-learn"),
        ("cifar10", "torchvision.datasets", "torchvision"),
        ("cifar100", "torchvision.datasets", "torchvision"),
    ],
)
def test_a_missing_package_is_named(name, module, package, monkeypatch):
    for missing in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=rf"data.name={name} needs {module}, .*pip install {package}"):
        source.load(DataConfig(name))


def test_a_broken_torchvision_is_explained(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ConfigError, match=r"can't be imported \(operator torchvision::nms does not exist\)"):
        source.load(DataConfig("cifar10"))
