"""STL-10's binary files, against torchvision's reader, and its archive."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import signal
import tarfile

import numpy as np
import pytest
import torch

from sftn_fast import data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.files import SCRATCH, exclusive
from sftn_fast.data.source import load
from sftn_fast.data.sources import stl10

datasets = pytest.importorskip("torchvision.datasets")
PUBLISHED = datasets.STL10
COUNTS = {"train": 4, "test": 3}
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")


def pixels(split):
    """Return upright images [N, 3, 96, 96]."""
    return np.random.default_rng(COUNTS[split]).integers(256, size=(COUNTS[split], 3, 96, 96), dtype=np.uint8)


def contents(labels=(1, 10, 5, 2)):
    found = {}
    for split, count in COUNTS.items():
        found[f"{split}_X.bin"] = pixels(split).transpose(0, 1, 3, 2).tobytes()
        found[f"{split}_y.bin"] = bytes(labels[:count])
    return found


def make_archive(files, *, first=None, last=b"unlabelled"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        if first is not None:
            tar.addfile(first)
        for name, content in {**files, "unlabeled_X.bin": last}.items():
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(monkeypatch, files, archive=b""):
    """Make torchvision list the checksums of these files."""
    for attribute in ("train_list", "test_list"):
        listed = [[name, hashlib.md5(files.get(name, b"")).hexdigest()] for name, _ in getattr(PUBLISHED, attribute)]
        monkeypatch.setattr(PUBLISHED, attribute, listed)
    monkeypatch.setattr(PUBLISHED, "tgz_md5", hashlib.md5(archive).hexdigest())


def write(root, files):
    (root / "stl10_binary").mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / "stl10_binary" / name).write_bytes(content)


def load_from(root, **options):
    return load(DataConfig("stl10", root=str(root), **options))


def test_the_binary_files(tmp_path, monkeypatch):
    publish(monkeypatch, contents())
    write(tmp_path, contents())
    source = load_from(tmp_path)
    for split, labels in (("train", [0, 9, 4, 1]), ("test", [0, 9, 4])):
        found = getattr(source, split)
        assert torch.equal(found.pixels, torch.from_numpy(pixels(split)))
        assert found.labels.tolist() == labels
    assert (source.num_classes, source.crop_padding, source.flip) == (10, 12, True)
    assert (source.class_names[0], source.class_names[9]) == ("airplane", "truck")


@pytest.mark.parametrize("split", ["train", "test"])
def test_torchvision_reads_the_same(split, tmp_path, monkeypatch):
    publish(monkeypatch, contents())
    write(tmp_path, contents() | {"unlabeled_X.bin": b""})
    theirs, ours = PUBLISHED(tmp_path, split=split), getattr(load_from(tmp_path), split)
    assert torch.equal(ours.pixels, torch.from_numpy(theirs.data.copy()))
    assert ours.labels.tolist() == theirs.labels.tolist()


def test_resized(tmp_path, monkeypatch):
    publish(monkeypatch, contents())
    write(tmp_path, contents())
    config = DataConfig("stl10", root=str(tmp_path), image_size=32)
    images = data.build(config, seed=0, batch_size=2, device="cpu")
    assert (images.image_size, images.train.crop_padding) == (32, 4)
    assert next(images.train.epoch(0)).images.shape == (2, 3, 32, 32)


def test_an_archive_is_unpacked_and_its_unlabelled_images_are_not(tmp_path, monkeypatch):
    archive = make_archive(contents())
    publish(monkeypatch, contents(), archive)
    (tmp_path / "stl10_binary.tar.gz").write_bytes(archive)
    for _ in range(2):
        assert len(load_from(tmp_path).train.labels) == COUNTS["train"]
    assert sorted(path.name for path in (tmp_path / "stl10_binary").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "stl10_binary", "stl10_binary.tar.gz"]


ELSEWHERE = ("../escaped", "stl10_binary/../../escaped", "{outside}/escaped")
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*itertools.product(ELSEWHERE, (tarfile.REGTYPE, *LINKS)), *itertools.product(["stl10_binary/train_X.bin"], LINKS)],
)
def test_an_archive_writes_nowhere_else(name, kind, tmp_path, monkeypatch):
    """Members outside the folder, and links with the name of a wanted file, come first and are ignored."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret").write_bytes(b"untouched")
    root.mkdir()
    member = tarfile.TarInfo(name.format(outside=outside))
    member.type, member.linkname = kind, str(outside / "secret")
    archive = make_archive(contents(), first=member)
    publish(monkeypatch, contents(), archive)
    (root / "stl10_binary.tar.gz").write_bytes(archive)
    assert len(load_from(root).train.labels) == COUNTS["train"]
    assert [(path.name, path.read_bytes()) for path in outside.iterdir()] == [("secret", b"untouched")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "root"]
    assert not any(path.is_symlink() for path in root.rglob("*"))


def test_download(tmp_path, monkeypatch, mirror):
    folder, address = mirror
    archive = make_archive(contents())
    publish(monkeypatch, contents(), archive)
    (folder / "stl10_binary.tar.gz").write_bytes(archive)
    monkeypatch.setattr(PUBLISHED, "url", f"{address}/stl10_binary.tar.gz")
    assert len(load_from(tmp_path / "root", download=True).test.labels) == COUNTS["test"]
    monkeypatch.setattr(PUBLISHED, "tgz_md5", "0" * 32)
    with pytest.raises(ConfigError, match=r"data.name=stl10: http://.* could not be downloaded"):
        load_from(tmp_path / "another", download=True)
    assert [path.name for path in (tmp_path / "another").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (make_archive(contents())[:2000], "can't be unpacked"),
        (b"not an archive", "can't be unpacked"),
        (make_archive({name: contents()[name] for name in FILES[:3]}), "lacks stl10_binary/test_y.bin"),
    ],
    ids=["truncated", "no archive", "incomplete"],
)
def test_a_damaged_archive_is_refused(archive, message, tmp_path, monkeypatch):
    publish(monkeypatch, contents(), archive)
    (tmp_path / "stl10_binary.tar.gz").write_bytes(archive)
    with pytest.raises(ConfigError, match=f"stl10_binary.tar.gz {message}.*; remove it and download it again"):
        load_from(tmp_path)


def test_an_archive_that_is_another_is_not_unpacked(tmp_path, monkeypatch):
    archive = make_archive(contents())
    publish(monkeypatch, contents(), archive)
    (tmp_path / "stl10_binary.tar.gz").write_bytes(archive + b"more")
    monkeypatch.setattr(stl10.tarfile, "open", lambda **_: pytest.fail("unpacked"))
    with pytest.raises(ConfigError, match=r"stl10_binary.tar.gz is corrupt or not the published file: .*; remove it"):
        load_from(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "stl10_binary.tar.gz"]


def test_what_a_killed_run_left_is_removed(tmp_path, monkeypatch):
    archive = make_archive(contents())
    publish(monkeypatch, contents(), archive)
    (tmp_path / "stl10_binary.tar.gz").write_bytes(archive)
    child = os.fork()
    if child == 0:  # killed while unpacking
        with exclusive(tmp_path) as scratch:
            (scratch / "train_X.bin").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(f"{SCRATCH}*/train_X.bin"))) == 1
    assert len(load_from(tmp_path).train.labels) == COUNTS["train"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "stl10_binary", "stl10_binary.tar.gz"]


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_lock_is_not_written_through(kind, tmp_path, monkeypatch):
    (tmp_path / "other").write_bytes(b"untouched")
    root = tmp_path / "root"
    root.mkdir()
    if kind == "link":
        (root / ".lock").symlink_to(tmp_path / "other")
        with pytest.raises(ConfigError, match="a folder that can be written to"), exclusive(root):
            pass
    else:
        os.mkfifo(root / ".lock")
        with exclusive(root):  # without waiting for a writer
            pass
    assert (tmp_path / "other").read_bytes() == b"untouched"


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(name, tmp_path, monkeypatch):
    publish(monkeypatch, contents())
    write(tmp_path, contents() | {name: contents()[name][:-1]})
    with pytest.raises(ConfigError, match=f"{name} is corrupt or not the published file"):
        load_from(tmp_path)


def test_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    files = contents(labels=(1, 0, 11, 2))
    publish(monkeypatch, files)
    write(tmp_path, files)
    with pytest.raises(ConfigError, match=r"the training set has 2 labels outside 0..9, the first at image 1: -1"):
        load_from(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError) as error:
        load_from(tmp_path / "nothing here")
    for part in ("data.name=stl10", str(tmp_path / "nothing here" / "stl10_binary"), "--data.download=true"):
        assert part in str(error.value)
    assert not (tmp_path / "nothing here").exists()
