from __future__ import annotations

import gzip
import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import load
from sftn_fast.data.sources import fashion_mnist
from sftn_fast.data.sources.fashion_mnist import SYSTEM_FOLDER, read_idx


def idx(array, shape=None):
    """Build an idx file of uint8 whose header declares ``shape``, by default the array's own."""
    shape = array.shape if shape is None else shape
    return bytes((0, 0, 8, len(shape))) + np.array(shape, ">u4").tobytes() + array.tobytes()


def pixels(count):
    return np.random.default_rng(count).integers(256, size=(count, 28, 28), dtype=np.uint8)


def write_files(folder, **replaced):
    """Write a small data set to ``folder``; ``replaced`` has other contents by name, with underscores for dashes."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {}
    for split, count in (("train", 40), ("t10k", 20)):
        contents[f"{split}-images-idx3-ubyte"] = idx(pixels(count))
        contents[f"{split}-labels-idx1-ubyte"] = idx(np.arange(count, dtype=np.uint8) % 10)
    contents |= {name.replace("_", "-"): content for name, content in replaced.items()}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        fashion_mnist.SHA256[name] = hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def no_system_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")


@pytest.fixture(autouse=True)
def published(monkeypatch):
    """Make the files of `write_files` the published ones."""
    monkeypatch.setattr(fashion_mnist, "SHA256", dict(fashion_mnist.SHA256))


def load_from(root):
    return load(DataConfig("fashion_mnist", root=str(root)))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", ["data", "with a space", "Mode-Bilder-für-später-衣"])
def test_torchvisions_layout(folder, zipped, tmp_path):
    raw = tmp_path / folder / "FashionMNIST" / "raw"
    write_files(raw)
    for path in list(raw.iterdir()) if zipped else []:
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    source = load_from(tmp_path / folder)
    assert torch.equal(source.train.pixels, torch.from_numpy(pixels(40)).unsqueeze(1))
    assert source.test.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9] * 2


def test_torchvision_reads_the_same(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    write_files(tmp_path / "FashionMNIST" / "raw")
    theirs = datasets.FashionMNIST(tmp_path, train=False)
    ours = load_from(tmp_path).test
    assert torch.equal(ours.pixels.squeeze(1), theirs.data)
    assert torch.equal(ours.labels, theirs.targets)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(tmp_path / "my data" / "FashionMNIST" / "raw")
    assert len(load_from("~/my data").train.pixels) == 40


def test_the_system_folder_serves_where_root_does_not(tmp_path):
    write_files(tmp_path / "system")
    assert len(load_from(tmp_path / "nothing here").train.pixels) == 40


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_from(tmp_path / "nothing here")
    message = str(error.value)
    folders = (tmp_path / "nothing here" / "FashionMNIST" / "raw", tmp_path / "system")
    for part in ("data.name=fashion_mnist", *map(str, folders), "--data.download=true", "dataset-fashion-mnist"):
        assert part in message


def test_a_download_that_fails_leaves_nothing(tmp_path, monkeypatch, mirror):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{mirror[1]}/"])
    with pytest.raises(ConfigError, match=r"data.name=fashion_mnist: the files could not be downloaded"):
        load(DataConfig("fashion_mnist", root=str(tmp_path / "root"), download=True))
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".lock"]


def test_download(tmp_path, monkeypatch, mirror):
    folder, address = mirror
    datasets = pytest.importorskip("torchvision.datasets")
    utils = pytest.importorskip("torchvision.datasets.utils")
    write_files(folder)
    resources = []
    for path in sorted(folder.iterdir()):
        zipped = Path(f"{path}.gz")
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((zipped.name, utils.calculate_md5(zipped)))
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{address}/"])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
    for _ in range(2):
        source = load(DataConfig("fashion_mnist", root=str(tmp_path / "root"), download=True))
        assert torch.equal(source.train.pixels, torch.from_numpy(pixels(40)).unsqueeze(1))
    assert sorted(path.name for path in (tmp_path / "root").iterdir()) == [".lock", "FashionMNIST"]


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", fashion_mnist.FILES)
@pytest.mark.parametrize("folder", ["root/FashionMNIST/raw", "system"])
def test_other_content_of_the_right_form_is_refused(folder, name, zipped, tmp_path):
    """For example random pixels, or labels in another order."""
    write_files(tmp_path / folder)
    path = tmp_path / folder / name
    content = path.read_bytes()
    changed = content[:-1] + bytes((content[-1] ^ 1,))
    path.unlink()
    target = Path(f"{path}.gz") if zipped else path
    target.write_bytes(gzip.compress(changed) if zipped else changed)
    with pytest.raises(ConfigError) as error:
        load_from(tmp_path / "root")
    for part in (str(target), "not the published file", hashlib.sha256(changed).hexdigest(), "download it again"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


IMAGES, LABELS = pixels(40), np.arange(40, dtype=np.uint8) % 10


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_images_idx3_ubyte": idx(IMAGES)[:-1]}, "header says 31360 bytes of data, it holds 31359"),
        ({"train_images_idx3_ubyte": idx(IMAGES) + b"x"}, "header says 31360 bytes of data, it holds more"),
        ({"train_images_idx3_ubyte": b""}, "not an idx file"),
        ({"train_images_idx3_ubyte": b"<html>404 Not Found</html>"}, "not an idx file"),
        ({"train_images_idx3_ubyte": idx(IMAGES)[:9]}, "not an idx file"),
        ({"train_images_idx3_ubyte": b"\0\0\x0d\3" + idx(IMAGES)[4:]}, "not an idx file"),  # float32
        ({"train_images_idx3_ubyte": idx(LABELS)}, "not an idx file"),
        ({"train_images_idx3_ubyte": idx(IMAGES[:, 1:])}, r"not an idx file of uint8 items of shape \[28, 28\]"),
        ({"train_images_idx3_ubyte": idx(IMAGES, (2**32 - 1, 28, 28))}, "header says 4294967295 items"),
        ({"train_images_idx3_ubyte": idx(IMAGES[:0])}, "header says 0 items"),
        ({"train_images_idx3_ubyte": idx(IMAGES[:39])}, r"an int64 label for each of its 39 images, .* \[40\]"),
        ({"train_labels_idx1_ubyte": idx(LABELS[:39])}, r"an int64 label for each of its 40 images, .* \[39\]"),
        ({"t10k_labels_idx1_ubyte": idx(LABELS[:20] + 1)}, r"2 labels outside 0..9, the first at image 9: 10"),
    ],
)
def test_corrupt_files_are_refused(replaced, message, tmp_path):
    write_files(tmp_path / "FashionMNIST" / "raw", **replaced)
    with pytest.raises(ConfigError, match=message):
        load_from(tmp_path)


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes((content[middle] ^ 0x10,)) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [truncated, flipped, lambda content: content[:-4], lambda content: b"no gzip"])
def test_damaged_gzip_is_refused(damage, tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx(IMAGES))))
    with pytest.raises(ConfigError, match=r"images.gz (can't be read|is corrupt)"):
        read_idx(path, (28, 28))


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(IMAGES) + bytes(50_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(ConfigError, match="it holds more"):
        read_idx(path, (28, 28))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.skipif(
    not (SYSTEM_FOLDER / "train-images-idx3-ubyte.gz").is_file(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_debians_package(tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", SYSTEM_FOLDER)
    source = load_from(tmp_path)
    assert source.class_names[9] == "Ankle boot"
    assert source.train.labels.bincount().tolist() == [6000] * 10
    assert source.test.labels.bincount().tolist() == [1000] * 10
    greys = source.train.pixels.flatten().bincount(minlength=256).double()
    values = torch.arange(256) / 255
    mean = float((greys * values).sum() / greys.sum())
    std = float(((greys * (values - mean) ** 2).sum() / greys.sum()).sqrt())
    assert (mean, std) == (pytest.approx(source.mean[0], abs=1e-4), pytest.approx(source.std[0], abs=1e-4))
