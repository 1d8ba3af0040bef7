from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.source import load

datasets = pytest.importorskip("torchvision.datasets")
PUBLISHED = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
LABELS_KEY = {"cifar10": "labels", "cifar100": "fine_labels"}
COUNT = 6  # images in each batch file


def pixels(position):
    return np.random.default_rng(position).integers(256, size=(COUNT, 3072), dtype=np.uint8)


def md5(content):
    return hashlib.md5(content).hexdigest()


def batch_names(name):
    return [batch for batch, _ in PUBLISHED[name].train_list + PUBLISHED[name].test_list]


def make_batches(name, labels=None):
    """Return small batch files in the published format, by name; a file's position is the seed of its images."""
    labels = list(range(COUNT)) if labels is None else labels
    return {
        batch: pickle.dumps({"data": pixels(position), LABELS_KEY[name]: labels})
        for position, batch in enumerate(batch_names(name))
    }


def make_archive(name, batches, extra=()):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for batch, content in batches.items():
            member = tarfile.TarInfo(f"{PUBLISHED[name].base_folder}/{batch}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for member in extra:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


def publish(monkeypatch, name, batches, archive=b""):
    """Make torchvision list the checksums of these files."""
    published = PUBLISHED[name]
    for attribute in ("train_list", "test_list"):
        listed = [[batch, md5(batches[batch])] for batch, _ in getattr(published, attribute)]
        monkeypatch.setattr(published, attribute, listed)
    monkeypatch.setattr(published, "tgz_md5", md5(archive))


def write_batches(root, name, batches):
    folder = Path(root) / PUBLISHED[name].base_folder
    folder.mkdir(parents=True)
    for batch, content in batches.items():
        (folder / batch).write_bytes(content)
    return folder


def write_archive(root, name, content):
    root.mkdir(parents=True, exist_ok=True)
    (root / PUBLISHED[name].filename).write_bytes(content)


def load_from(name, root, **options):
    return load(DataConfig(name, root=str(root), **options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_batch_files(name, tmp_path, monkeypatch):
    batches = make_batches(name)
    publish(monkeypatch, name, batches)
    write_batches(tmp_path, name, batches)
    source = load_from(name, tmp_path)
    train_files = len(batches) - 1
    expected = np.concatenate([pixels(position) for position in range(train_files)]).reshape(-1, 3, 32, 32)
    assert torch.equal(source.train.pixels, torch.from_numpy(expected))
    assert source.train.labels.tolist() == list(range(COUNT)) * train_files
    assert torch.equal(source.test.pixels, torch.from_numpy(pixels(train_files)).view(-1, 3, 32, 32))


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvision_reads_the_same(name, tmp_path, monkeypatch):
    batches = make_batches(name)
    publish(monkeypatch, name, batches)
    folder = write_batches(tmp_path, name, batches)
    names = pickle.dumps({PUBLISHED[name].meta["key"]: ["apple"]})
    (folder / PUBLISHED[name].meta["filename"]).write_bytes(names)
    monkeypatch.setitem(PUBLISHED[name].meta, "md5", md5(names))
    theirs = PUBLISHED[name](tmp_path, train=True)
    ours = load_from(name, tmp_path).train
    assert torch.equal(ours.pixels.permute(0, 2, 3, 1), torch.from_numpy(theirs.data))
    assert ours.labels.tolist() == theirs.targets


@pytest.mark.parametrize("folder", ["data", "with a space", "Bilder-für-später-画"])
def test_an_archive_is_unpacked(folder, tmp_path, monkeypatch):
    batches = make_batches("cifar10")
    archive = make_archive("cifar10", batches)
    publish(monkeypatch, "cifar10", batches, archive)
    root = tmp_path / folder
    write_archive(root, "cifar10", archive)
    for _ in range(2):
        assert len(load_from("cifar10", root).train.pixels) == 5 * COUNT
    assert sorted(path.name for path in root.iterdir()) == [".lock", "cifar-10-batches-py", "cifar-10-python.tar.gz"]
    assert sorted(path.name for path in (root / "cifar-10-batches-py").iterdir()) == sorted(batches)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    batches = make_batches("cifar100")
    publish(monkeypatch, "cifar100", batches)
    write_batches(tmp_path / "my data", "cifar100", batches)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load_from("cifar100", "~/my data").train.pixels) == COUNT


def test_ranks_that_start_together_unpack_once(tmp_path, monkeypatch):
    batches = make_batches("cifar10")
    archive = make_archive("cifar10", batches)
    publish(monkeypatch, "cifar10", batches, archive)
    write_archive(tmp_path, "cifar10", archive)
    with ThreadPoolExecutor(4) as ranks:
        sources = list(ranks.map(lambda _: load_from("cifar10", tmp_path), range(4)))
    assert all(torch.equal(source.train.pixels, sources[0].train.pixels) for source in sources)


def test_download(tmp_path, monkeypatch, mirror):
    folder, address = mirror
    batches = make_batches("cifar100")
    archive = make_archive("cifar100", batches)
    publish(monkeypatch, "cifar100", batches, archive)
    write_archive(folder, "cifar100", archive)
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{address}/{datasets.CIFAR100.filename}")
    root = tmp_path / "not there yet" / "root"
    assert len(load_from("cifar100", root, download=True).train.pixels) == COUNT


@pytest.mark.parametrize("served", [None, b"something else"])
def test_a_download_that_fails_leaves_nothing(served, tmp_path, monkeypatch, mirror):
    folder, address = mirror
    if served is not None:
        (folder / "archive.tar.gz").write_bytes(served)
    monkeypatch.setattr(datasets.CIFAR100, "url", f"{address}/archive.tar.gz")
    with pytest.raises(ConfigError, match=r"data.name=cifar100: http://.*/archive.tar.gz could not be downloaded"):
        load_from("cifar100", tmp_path / "root", download=True)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_files(name, tmp_path):
    with pytest.raises(ConfigError) as error:
        load_from(name, tmp_path / "nothing here")
    for part in (f"data.name={name}", str(tmp_path / "nothing here"), "--data.download=true", "data.root"):
        assert part in str(error.value)
    assert not (tmp_path / "nothing here").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"",
        lambda content: content[:500] + bytes((content[500] ^ 1,)) + content[501:],
    ],
    ids=["truncated", "longer", "empty", "one bit"],
)
@pytest.mark.parametrize("position", [0, 3, 5])
def test_a_damaged_batch_is_refused(damage, position, tmp_path, monkeypatch):
    batches = make_batches("cifar10")
    publish(monkeypatch, "cifar10", batches)
    name = batch_names("cifar10")[position]
    write_batches(tmp_path, "cifar10", batches | {name: damage(batches[name])})
    with pytest.raises(ConfigError, match=f"{name} is corrupt or not the published file: .*remove it"):
        load_from("cifar10", tmp_path)


class Payload:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_is_not_the_published_one_never_runs(tmp_path):
    evidence = tmp_path / "executed"
    payload = pickle.dumps(Payload(evidence))
    pickle.loads(payload)
    assert evidence.exists()  # the payload works
    evidence.unlink()

    write_batches(tmp_path, "cifar10", dict.fromkeys(batch_names("cifar10"), payload))
    with pytest.raises(ConfigError, match="is corrupt or not the published file"):
        load_from("cifar10", tmp_path)
    assert not evidence.exists()


def test_a_pickle_with_the_right_checksum_never_runs_either(tmp_path, monkeypatch):
    evidence, batches = tmp_path / "executed", make_batches("cifar10")
    batches["data_batch_2"] = pickle.dumps({"data": pixels(0), "labels": Payload(evidence)})
    publish(monkeypatch, "cifar10", batches)
    write_batches(tmp_path, "cifar10", batches)
    with pytest.raises(ConfigError, match=r"data_batch_2 is refused: it calls "):
        load_from("cifar10", tmp_path)
    assert not evidence.exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_age_are_read(protocol, tmp_path, monkeypatch):
    batches = {
        batch: pickle.dumps(pickle.loads(content), protocol=protocol)
        for batch, content in make_batches("cifar10").items()
    }
    publish(monkeypatch, "cifar10", batches)
    write_batches(tmp_path, "cifar10", batches)
    assert torch.equal(load_from("cifar10", tmp_path).train.pixels[0].flatten(), torch.from_numpy(pixels(0)[0]))


def test_an_archive_of_another_checksum_is_not_unpacked(tmp_path):
    batches = make_batches("cifar10")
    write_archive(tmp_path, "cifar10", make_archive("cifar10", batches, [tarfile.TarInfo("../escaped")]))
    with pytest.raises(ConfigError, match=r"cifar-10-python.tar.gz is corrupt or not the published file"):
        load_from("cifar10", tmp_path)
    assert not (tmp_path / "cifar-10-batches-py").exists()
    assert not (tmp_path.parent / "escaped").exists()


def link(name, target, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        tarfile.TarInfo("../escaped"),
        tarfile.TarInfo("cifar-10-batches-py/../../escaped"),
        tarfile.TarInfo("/tmp/escaped"),
        tarfile.TarInfo("beside"),
        link("cifar-10-batches-py/link", "../..", tarfile.SYMTYPE),
        link("cifar-10-batches-py/link", "/etc/passwd", tarfile.LNKTYPE),
    ],
    ids=lambda member: f"{member.name} {member.linkname}".strip(),
)
def test_an_archive_that_leaves_its_folder_is_refused_even_with_the_right_checksum(member, tmp_path, monkeypatch):
    batches = make_batches("cifar10")
    archive = make_archive("cifar10", batches, [member])
    publish(monkeypatch, "cifar10", batches, archive)
    root = tmp_path / "root"
    write_archive(root, "cifar10", archive)
    with pytest.raises(ConfigError, match="is refused: its member"):
        load_from("cifar10", root)
    assert sorted(path.name for path in root.iterdir()) == [".lock", "cifar-10-python.tar.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


@pytest.mark.parametrize(("name", "label"), [("cifar10", 10), ("cifar10", -1), ("cifar100", 100)])
def test_labels_out_of_range_are_refused(name, label, tmp_path, monkeypatch):
    batches = make_batches(name, labels=[0, 1, 2, label, 4, 5])
    publish(monkeypatch, name, batches)
    write_batches(tmp_path, name, batches)
    with pytest.raises(ConfigError, match=rf"{name}: the training set has . labels outside .*at image 3: {label}"):
        load_from(name, tmp_path)


def test_a_root_that_can_not_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=r"data.root must be a folder that can be written to"):
        load_from("cifar10", tmp_path / "file", download=True)
