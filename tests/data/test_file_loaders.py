"""Images that are decoded on demand: the same contract as images in memory, with every decoder."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision.io")
import pictures
from batches import joined, rng_states, same
from PIL import Image

from sftn_fast import data, models
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data import dali_decoder, decoder_choice
from sftn_fast.data.dali_decoder import DaliDecoder
from sftn_fast.data.decode import decode
from sftn_fast.data.file_loaders import FileEvalLoader, FileSplit, FileTrainLoader, ImageFormat
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVEL = 1 / 255 / min(STD)  # one step of 8 bits, normalised
DECODERS = {
    "dali": DaliDecoder,
    "dali, all of it": lambda form, **options: DaliDecoder(form, resize=True, **options),  # as on a GPU
    "torchvision": TorchvisionDecoder,
}
SHAPES = [(80, 60), (60, 80), (64, 64), (131, 97), (150, 40), (33, 35)]  # width, height


@pytest.fixture(scope="module", autouse=True)
def dali():
    pytest.importorskip("nvidia.dali.fn")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """JPEGs of several sizes, with coarse and fine blobs like a photograph's."""
    folder, draws = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    paths = []
    for i in range(24):
        width, height = SHAPES[i % len(SHAPES)]
        blots = [draws.integers(256, size=(height // k + 1, width // k + 1, 3), dtype=np.uint8) for k in (16, 3)]
        coarse, fine = (Image.fromarray(b).resize((width, height), Image.Resampling.BICUBIC) for b in blots)
        paths.append(pictures.write(folder / f"{i:02}.jpg", Image.blend(coarse, fine, 0.3), quality=92))
    return paths


def split_of(paths):
    return FileSplit([str(path) for path in paths], torch.arange(len(paths)) * 7 % 10)


def decoder_of(name, size=16, workers=1, root="/data", **form):
    return DECODERS[name](ImageFormat(size, MEAN, STD, torch.device("cpu"), **form), workers=workers, root=Path(root))


def loader(name, paths, batch_size=8, size=16, workers=1, seed=0, flip=True, **ranks):
    decoder = decoder_of(name, size, workers)
    return FileTrainLoader(split_of(paths), decoder, seed=seed, batch_size=batch_size, flip=flip, **ranks)


def nothing_left():
    return not multiprocessing.active_children() and not any(
        thread.name.startswith(dali_decoder.THREADS) for thread in threading.enumerate()
    )


each_decoder = pytest.mark.parametrize("name", DECODERS)


# The contract of batches


@each_decoder
def test_batches_are_a_function_of_seed_epoch_and_step(name, photographs):
    paths = photographs[:22]
    train, before = loader(name, paths), rng_states()
    whole = list(train.epoch(1))
    assert rng_states() == before
    assert [len(batch.index) for batch in whole] == [8, 8, 6] and len(train) == 3
    images, target, index = joined(whole)
    assert (images.dtype, images.shape[1:], images.is_contiguous()) == (torch.float32, (3, 16, 16), True)
    assert index.sort().values.tolist() == list(range(22))
    assert torch.equal(target, train.labels[index]) and target.dtype == index.dtype == torch.int64

    for start in range(4):  # 3 is the epoch's end
        resumed = list(loader(name, paths, workers=2).epoch(1, start))  # by other workers, too
        assert len(resumed) == 3 - start
        assert start == 3 or same(whole[start:], resumed)
    assert not torch.equal(joined(train.epoch(2))[2], index)
    with pytest.raises(ValueError, match="start must be from 0 to 3, got 4"):
        train.epoch(0, 4)


@each_decoder
def test_two_ranks_together_see_what_one_sees_and_resume_alike(name, photographs):
    paths = photographs[:22]
    single = list(loader(name, paths).epoch(1))
    ranks = [loader(name, paths, rank=rank, world_size=2) for rank in range(2)]
    shares = [list(train.epoch(1)) for train in ranks]
    for batch, *parts in zip(single, *shares, strict=True):
        assert [len(part.index) for part in parts] == [len(batch.index) // 2] * 2
        assert all(map(torch.equal, joined(parts), joined([batch])))
    for train, share in zip(ranks, shares, strict=True):
        assert same(share[1:], train.epoch(1, 1))


@each_decoder
@pytest.mark.parametrize(("count", "world_size"), [(1, 1), (2, 3), (24, 1), (23, 2)])
def test_each_image_is_evaluated_exactly_once(name, count, world_size, photographs):
    files, decoder = split_of(photographs[:count]), decoder_of(name)
    shards = [FileEvalLoader(files, decoder, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(shard) for shard in shards]
    assert [len(shard) for shard in shards] == [len(found) for found in batches]
    assert {shard.num_samples for shard in shards} == {count}
    images, target, index = joined(chain(*batches))
    assert index.tolist() == list(range(count)) and torch.equal(target, files.labels)
    assert torch.equal(images, joined(FileEvalLoader(files, decoder))[0])


@each_decoder
def test_channels_last(name, photographs):
    files = split_of(photographs[:4])
    plain, last = (next(iter(FileEvalLoader(files, decoder_of(name, channels_last=c)))).images for c in (False, True))
    assert last.is_contiguous(memory_format=torch.channels_last) and not plain.is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(plain, last)


# What the images look like


def theirs(path, size):
    """Load an image as torchvision's ImageNet example does in evaluation."""
    v1 = pytest.importorskip("torchvision.transforms")
    shorter = round(size * 256 / 224)
    parts = [v1.Resize(shorter), v1.CenterCrop(size), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    return v1.Compose(parts)(Image.open(path).convert("RGB"))


def test_all_decoders_see_the_same(photographs):
    for size in (16, 48):  # at 48 some images are enlarged
        train = {name: joined(loader(name, photographs, size=size).epoch(0))[0] for name in DECODERS}
        evaluated = {
            name: joined(FileEvalLoader(split_of(photographs), decoder_of(name, size)))[0] for name in DECODERS
        }
        for images in (train, evaluated):
            assert torch.equal(images["dali"], images["torchvision"])
            difference = (images["dali, all of it"] - images["dali"]).abs()
            assert difference[:, :, 1:-1, 1:-1].max() < 2.1 * LEVEL and difference.mean() < 0.4 * LEVEL
            # At the edge DALI repeats the last pixel, while torch and Pillow average fewer pixels.
            assert difference.max() < 8.1 * LEVEL
        expected = torch.stack([theirs(path, size) for path in photographs])
        difference = (evaluated["dali"] - expected).abs()
        assert difference.max() < 2.1 * LEVEL and difference.mean() < 0.3 * LEVEL


def test_all_decoders_give_the_same_accuracy(photographs):
    torch.manual_seed(0)
    network = models.build("resnet8").eval()
    reference = torch.stack([theirs(path, 32) for path in photographs])
    with torch.no_grad():
        pooled = network.forward_features(reference).pooled
        classifier = torch.randn(pooled.shape[1], 10)

        def chosen(images):
            return ((network.forward_features(images).pooled - pooled.mean(0)) @ classifier).argmax(1)

        expected = chosen(reference)
        assert len(expected.unique()) > 4
        for name in DECODERS:
            seen = joined(FileEvalLoader(split_of(photographs), decoder_of(name, 32)))[0]
            assert torch.equal(chosen(seen), expected), name


def odd_files(folder):
    """Write one picture in unusual ways; every file must look like the first."""
    picture = Image.new("RGB", (40, 24), (200, 200, 200))
    picture.paste((60, 60, 60), (0, 0, 20, 12))  # a dark corner: top left
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees
    sixteen = (np.asarray(picture.convert("L")).astype(">u2") * 257).tobytes()
    write = pictures.write
    (folder / "sixteen.png").write_bytes(pictures.png(40, 24, bits=16, colour_type=0, raw=sixteen))
    return [
        write(folder / "plain.jpg", picture, quality=95),
        write(folder / "progressive.jpg", picture, quality=95, progressive=True),
        write(folder / "grey.jpg", picture.convert("L"), quality=95),
        write(folder / "cmyk.jpg", picture.convert("CMYK"), quality=95),
        write(folder / "rotated.jpg", picture.transpose(Image.Transpose.ROTATE_90), quality=95, exif=exif),
        write(folder / "png named.jpg", picture, format="PNG"),
        write(folder / "alpha.png", picture.convert("RGBA")),
        write(folder / "palette.gif", picture.quantize(8, dither=Image.Dither.NONE)),
        write(folder / "lossless.webp", picture, lossless=True),
        folder / "sixteen.png",
    ]


@each_decoder
def test_odd_files_look_the_same(name, tmp_path):
    paths = odd_files(tmp_path)
    images, target, _ = joined(FileEvalLoader(split_of(paths), decoder_of(name, 16)))
    assert torch.equal(target, split_of(paths).labels)
    for path, image in zip(paths, images, strict=True):
        assert (image - images[0]).abs().max() < 8 * LEVEL, path.name
    whole = np.asarray(decode(paths[4]))
    assert whole.shape == (24, 40, 3) and whole[2, 2].max() < 80  # so that the rotation is visible


# Faults


def broken_huffman_table(path):
    """Write a JPEG with a readable header and undecodable pixels."""
    content = bytearray(pictures.write(path, pictures.noise((64, 64))).read_bytes())
    table = content.index(b"\xff\xc4")
    content[table + 5 : table + 21] = b"\xff" * 16
    path.write_bytes(content)
    return path


@each_decoder
@pytest.mark.parametrize("kind", [*pictures.FAULTS, "broken table"])
def test_a_damaged_file_is_named(name, kind, photographs, tmp_path):
    bad = tmp_path / "bad file.jpg"
    if kind == "broken table":
        broken_huffman_table(bad)
    else:
        pictures.damaged(bad, kind)
    files = split_of([*photographs[:5], bad, *photographs[5:7]])
    evaluation = FileEvalLoader(files, decoder_of(name, root=tmp_path))
    with pytest.raises(ConfigError) as error:
        list(evaluation)
    message = str(error.value)
    assert str(bad) in message and f"python -m sftn_fast.data.verify {tmp_path}" in message and "\n" not in message
    assert nothing_left()


@each_decoder
def test_a_loader_that_is_left_in_mid_epoch_leaves_nothing_behind(name, photographs):
    batches = loader(name, photographs, batch_size=4).epoch(0)
    next(batches)
    del batches
    assert nothing_left()


def test_a_worker_that_dies_is_an_error_in_one_line(photographs, monkeypatch):
    wait = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.05,))  # seconds between torch's checks that its workers are alive
    batches = loader("torchvision", photographs, batch_size=2).epoch(0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join(30)
    with pytest.raises(ConfigError, match=r"a process that decodes images died.*try fewer data.workers") as error:
        list(batches)
    assert "\n" not in str(error.value)
    assert nothing_left()


# The choice


def a_data_set(root, count=4):
    for split in ("train", "val"):
        for label, colour in enumerate(("blue", "green", "red")):
            for i in range(count):
                pictures.write(root / split / f"n{label}" / f"{i}.JPEG", pictures.draw(colour, (30 + i, 24)))
    return root


def build(root, **options):
    config = DataConfig("imagenet", root=str(root), **({"image_size": 16, "workers": 1} | options))
    return data.build(config, seed=0, batch_size=4, device="cpu")


@pytest.mark.parametrize("name", ["dali", "torchvision"])
def test_built_from_a_configuration(name, tmp_path, capsys):
    root = a_data_set(tmp_path / "Bilder für ImageNet")
    pictures.damaged(root / "train" / "n0" / "bad.JPEG", "empty")
    (root / "skip.txt").write_text("train/n0/bad.JPEG\n")
    images = build(root, loader=name, val_size=3, train_size=6)
    assert (images.num_classes, images.in_channels, images.image_size, images.num_train) == (3, 3, 16, 6)
    assert (images.val.num_samples, images.test.num_samples) == (3, 12)
    assert torch.equal(images.train_labels.bincount(), torch.tensor([2, 2, 2]))
    red = (torch.tensor(pictures.COLOURS["red"]) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    last = joined(images.test)[0][-1]
    assert (last[:, 8, 8] - red).abs().max() < 3 * LEVEL  # JPEG moves colours a little
    features = joined(images.train.unaugmented())
    assert features[2].tolist() == list(range(6)) and torch.equal(features[1], images.train_labels)

    students = build(root, loader=name, val_size=3, train_size=6, student_size=3).of_students
    assert torch.equal(students.train_labels.bincount(), torch.tensor([1, 1, 1]))
    assert images.fingerprint() == build(root, loader=name, val_size=3, train_size=6, workers=2).fingerprint()
    assert images.fingerprint()["loader"] == name
    for other in ({"train_size": 5}, {"image_size": 24}, {"flip": False}):
        changed = build(root, **({"loader": name, "val_size": 3, "train_size": 6} | other))
        assert changed.fingerprint() != images.fingerprint(), other
    (root / "val" / "n0" / "0.JPEG").rename(root / "val" / "n0" / "9.JPEG")
    assert images.fingerprint() != build(root, loader=name, val_size=3, train_size=6).fingerprint()


@pytest.mark.parametrize(
    "options", [{"name": "imagenet"}, {"name": "folder", "loader": "torchvision", "image_size": 224}]
)
def test_the_size_is_224(options, tmp_path):
    images = data.build(DataConfig(root=str(a_data_set(tmp_path)), **options), seed=0, batch_size=4, device="cpu")
    assert next(images.train.epoch(0)).images.shape == (4, 3, 224, 224)


def test_without_torchvision_the_loader_says_so(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision.io", None)
    with pytest.raises(ConfigError, match=r"^data.loader=torchvision needs torchvision.io, which can't be imported"):
        build(a_data_set(tmp_path), loader="torchvision")


@pytest.fixture(params=["missing", "broken"])
def no_dali(request, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.split(".")[:2] == ["nvidia", "dali"]]:
        monkeypatch.delitem(sys.modules, name)
    if request.param == "missing":
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
        return "ModuleNotFoundError: "

    def refuse(name):
        raise OSError("libdali.so: cannot open shared object file")

    monkeypatch.setattr(dali_decoder, "import_module", refuse)
    return "OSError: libdali.so"


def test_without_dali_the_cause_and_the_fix_are_said_and_torchvision_takes_over(no_dali, tmp_path):
    a_data_set(tmp_path)
    with pytest.raises(ConfigError) as error:
        build(tmp_path, loader="dali")
    message = str(error.value)
    assert no_dali in message and "pip install nvidia-dali-cuda130" in message and "data.loader=torchvision" in message
    images = build(tmp_path)
    assert images.fingerprint()["loader"] == "torchvision"
    line = decoder_choice.describe_loader(DataConfig("imagenet", workers=3))
    assert line.startswith("images are decoded on demand by torchvision in 3 processes, because DALI can't")
    assert no_dali in line and "\n" not in line
    assert build(tmp_path, loader="memory").num_train == 12


def test_what_is_said_of_the_loader():
    assert decoder_choice.describe_loader(DataConfig("folder", image_size=32)) is None
    line = decoder_choice.describe_loader(DataConfig("imagenet", workers=1))
    assert line == "images are decoded on demand by DALI in 1 thread"
    assert decoder_choice.describe_loader(DataConfig("folder", loader="torchvision")).endswith(("process", "processes"))


def test_the_cores_are_shared_by_the_ranks_of_a_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoder_choice.describe_loader(DataConfig("imagenet", loader="dali")).endswith("in 2 threads")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar100", "loader": "dali"}, "data.loader must be auto or memory for data.name=cifar100"),
        ({"name": "imagenet", "loader": "disk"}, "data.loader must be one of auto, memory, dali, torchvision"),
        ({"name": "imagenet", "workers": 0}, "data.workers must be from 1 to 1024, got 0"),
        ({"name": "imagenet", "crop_padding": 4}, "data.crop_padding must be null"),
        ({"name": "imagenet", "image_size": 600}, "data.image_size must be from 8 to 512, got 600"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)
