"""Policies, hidden parts and strong views in the loaders: a function of seed, epoch and image, for every loader."""

from __future__ import annotations

from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import joined, rng_states, same

pytest.importorskip("torchvision.transforms.v2")
from PIL import Image

from sftn_fast import data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.auto_augment import Policy
from sftn_fast.data.dali_decoder import DaliDecoder
from sftn_fast.data.file_loaders import FileSplit, FileTrainLoader, ImageFormat
from sftn_fast.data.loaders import DeviceImages, TrainLoader
from sftn_fast.data.source import Images
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder, _Files
from sftn_fast.data.views import STRONG, View

CPU = torch.device("cpu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
COUNT, SIZE = 22, 12
VIEW = View(Policy("randaugment", 2, 15), erasing=0.5)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, draws = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    paths = []
    for number in range(COUNT):
        path = folder / f"{number}.png"
        Image.fromarray(draws.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return FileSplit(paths, torch.arange(COUNT) % 3)


def memory_loader(view=VIEW, channels=3, **options):
    draws = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, channels, SIZE, SIZE), generator=draws).byte()
    images = DeviceImages.place(Images(pixels, torch.arange(COUNT) % 3), MEAN[:channels], STD[:channels], CPU)
    settings = {"seed": 0, "batch_size": 8, "crop_padding": 1, "flip": True, **options}
    return TrainLoader(images, view=view, **settings)


class WorkerHere:
    """What a worker of the torchvision decoder does, without its process."""

    name = "torchvision"

    def __init__(self, image_format):
        self.image_format = image_format

    def __call__(self, batches, largest):
        worker = _Files(self.image_format)
        for samples in batches:
            assert len(samples) <= largest
            yield self.image_format.finish(worker.__getitems__(samples))


def file_loader(files, view=VIEW, decoder=WorkerHere, channels_last=False, **options):
    decode = decoder(ImageFormat(SIZE, MEAN, STD, CPU, channels_last=channels_last))
    return FileTrainLoader(files, decode, view=view, **{"seed": 0, "batch_size": 8, "flip": True, **options})


@pytest.fixture(params=["memory", "files"])
def build(request, files):
    return memory_loader if request.param == "memory" else partial(file_loader, files)


def unlike(first, second):
    """Return the share of images that differ."""
    return (first != second).flatten(1).any(1).float().mean().item()


def test_batches_are_a_function_of_seed_epoch_and_step(build):
    before, train = rng_states(), build()
    whole = list(train.epoch(1))
    assert rng_states() == before
    assert same(whole[1:], build().epoch(1, 1))
    plain = joined(build(View()).epoch(1))
    assert torch.equal(joined(whole)[2], plain[2])
    assert unlike(joined(whole)[0], plain[0]) > 0.8


def test_worker_processes_change_nothing(files):
    here = file_loader(files).with_views(2, strong=True)
    apart = file_loader(files, decoder=lambda form: TorchvisionDecoder(form, workers=2, root=Path("/data")))
    assert same(here.epoch(0), apart.with_views(2, strong=True).epoch(0))


def test_dali_hides_the_same_parts(files):
    pytest.importorskip("nvidia.dali.fn")
    dali = file_loader(files, View(erasing=0.7), lambda form: DaliDecoder(form, workers=1, root=Path("/data")))
    assert same(dali.with_views(2).epoch(1), file_loader(files, View(erasing=0.7)).with_views(2).epoch(1))


def test_two_ranks_together_see_what_one_sees(build):
    for prepare in (lambda loader: loader, lambda loader: loader.with_views(2, strong=True)):
        single = joined(prepare(build()).epoch(2))
        shares = [list(prepare(build(rank=rank, world_size=2)).epoch(2)) for rank in (0, 1)]
        assert all(map(torch.equal, joined(chain.from_iterable(zip(*shares, strict=True))), single))


def test_the_weak_view_is_that_of_a_plain_loader_and_the_strong_one_is_not(build):
    plain, train = joined(build().epoch(1))[0], build().with_views(2, strong=True)
    batches = list(train.epoch(1))
    pairs = joined(batches)[0]
    assert pairs.shape == (COUNT, 2, 3, SIZE, SIZE)
    assert torch.equal(pairs[:, 0], plain)
    assert unlike(pairs[:, 0], pairs[:, 1]) == 1
    assert same(batches[2:], train.epoch(1, 2))
    assert unlike(pairs[:, 1], joined(train.epoch(2))[0][:, 1]) == 1
    weak = joined(build().with_views(2).epoch(1))[0]
    assert torch.equal(weak[:, 0], plain) and unlike(weak[:, 1], pairs[:, 1]) == 1


def test_a_cutout_is_grey_and_an_erased_part_is_the_mean(build):
    hidden = torch.tensor([125, 123, 114]).view(3, 1, 1) / 255
    hidden = (hidden - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    strong = joined(build().with_views(2, strong=True).epoch(0))[0][:, 1]
    assert (strong == hidden).all(1).flatten(1).any(1).all()
    erased = joined(build(View(erasing=1.0)).epoch(0))[0]
    plain = joined(build(View()).epoch(0))[0]
    zero = (erased == 0).all(1, keepdim=True)
    assert zero.flatten(1).any(1).all()
    assert torch.equal(erased, torch.where(zero, 0, plain))


def test_memory_format_of_erased_images(files):
    batch = next(file_loader(files, View(erasing=1.0), channels_last=True).epoch(0))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_a_graph_is_given_batches_that_the_policies_have_changed():
    """A batch is made of tensors of one shape by one function: only then is it replayed."""
    train = memory_loader().with_views(2, strong=True)
    deferred = list(train.deferred_batches(0))
    assert len({(batch.make, *(tensor.shape for tensor in batch.tensors)) for batch in deferred}) == 2  # one is smaller
    made = [batch.make(*batch.tensors) for batch in deferred]
    assert same(made, train.epoch(0))


def test_grey_images():
    pairs = joined(memory_loader(channels=1).with_views(2, strong=True).epoch(0))[0]
    assert (pairs[:, 1] == (torch.tensor(123) / 255 - MEAN[0]) / STD[0]).flatten(1).any(1).all()


def test_what_augments(build):
    assert not memory_loader(View(), crop_padding=0, flip=False).augments
    for view in (View(erasing=0.1), View(Policy("trivialaugment", 1))):
        assert memory_loader(view, crop_padding=0, flip=False).augments
    plain, ours = (build(view).augmentation() for view in (View(), VIEW))
    assert ours == plain | {"auto_augment": "randaugment ops=2 level=15", "random_erasing": "0.5"}


def folder(tmp_path, **options):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(4):
                Image.new("RGB", (8, 8), (9 * number, 0, 0)).save(tmp_path / split / name / f"{number}.png")
    config = DataConfig(name="folder", root=str(tmp_path), image_size=8, workers=1, **options)
    return data.build(config, seed=0, batch_size=4, device="cpu")


def test_data_sets_from_files(tmp_path, monkeypatch):
    images = folder(tmp_path, loader="torchvision", auto_augment="trivialaugment", random_erasing=0.5)
    assert images.fingerprint()["auto_augment"] == "trivialaugment ops=1 level=any"
    assert next(images.with_views(2, strong=True).train.epoch(0)).images.shape == (4, 2, 3, 8, 8)
    monkeypatch.setattr(images.train.decoder, "name", "dali")
    with pytest.raises(ConfigError, match=r"data\.loader must be torchvision or memory for a method that sees strong"):
        images.with_views(2, strong=True)


def test_dali_is_not_chosen_for_policies(monkeypatch):
    monkeypatch.setattr("sftn_fast.data.dali_decoder.why_not", lambda: None)
    options = {"name": "imagenet", "workers": 1}
    assert data.describe_loader(DataConfig(**options)) == "images are decoded on demand by DALI in 1 thread"
    said = data.describe_loader(DataConfig(**options, auto_augment="randaugment"))
    assert said.endswith("by torchvision in 1 process, because DALI has no data.auto_augment=randaugment")
    with pytest.raises(
        ConfigError, match=r"data\.loader must be auto, memory or torchvision with data.auto_augment=ra"
    ):
        DataConfig(name="imagenet", loader="dali", auto_augment="randaugment")


def test_strong_views_need_colours_that_torchvision_can_change():
    assert STRONG.policy == Policy("strong", 2)
    images = data.build(DataConfig("fake", train_size=16), seed=0, batch_size=8, device="cpu")
    object.__setattr__(images, "in_channels", 2)
    with pytest.raises(ConfigError, match="a method that sees strong views of the images takes images of 1 or 3 cha"):
        images.with_views(2, strong=True)
