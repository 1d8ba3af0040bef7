"""Grey images: one channel, by Pillow's formula, the same with each loader and in prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("PIL.Image")
import pictures
from PIL import Image

from sftn_fast import data
from sftn_fast.config import ConfigError, DataConfig
from sftn_fast.data.decode import read_images
from sftn_fast.data.decoder_choice import describe_loader
from sftn_fast.data.grey import to_grey


def test_brightness_is_pillows():
    colours = np.asarray(pictures.noise((64, 64)))
    expected = np.asarray(Image.fromarray(colours).convert("L"))
    assert np.array_equal(to_grey(colours.transpose(2, 0, 1)), expected[None])


def test_grey_stays_what_it_is(tmp_path):
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    (image,) = read_images([pictures.write(tmp_path / "a.png", ramp)], 16, root=tmp_path, grey=True)
    assert np.array_equal(image, np.asarray(ramp)[None])


@pytest.fixture
def root(tmp_path):
    for number, kind in enumerate(("train", "train", "val")):
        for name in ("a", "b"):
            image = pictures.noise((24, 24), seed=number)
            pictures.write(tmp_path / kind / name / f"{number}.png", image if name == "a" else image.convert("L"))
    return tmp_path


@pytest.mark.parametrize("loader", ["memory", "torchvision"])
def test_all_splits_have_one_channel_and_prediction_sees_the_same(root, loader):
    config = DataConfig("folder", root=str(root), image_size=16, grey=True, loader=loader)
    images = data.build(config, seed=0, batch_size=2, device="cpu")
    assert images.in_channels == 1 and images.preprocessing is not None
    assert next(images.train.epoch(0)).images.shape == (2, 1, 16, 16)
    (batch,) = images.test
    paths = [root / "val" / name / "2.png" for name in ("a", "b")]
    again = images.preprocessing.normalize(torch.stack([images.preprocessing.pixels(path) for path in paths]))
    torch.testing.assert_close(batch.images, again)


def test_dali_is_not_chosen_and_refused():
    assert "because DALI has no data.grey" in describe_loader(DataConfig("imagenet", grey=True))
    with pytest.raises(ConfigError, match=r"data.loader must be auto, memory or torchvision with data.grey"):
        DataConfig("folder", loader="dali", grey=True)
    with pytest.raises(ConfigError, match=r"data.grey must be false for data.name=digits"):
        DataConfig("digits", grey=True)
