from __future__ import annotations

from itertools import chain

import pytest
import torch
from batches import joined, rng_states, same

from sftn_fast.config import ConfigError
from sftn_fast.data.loaders import DeviceImages, EvalLoader, TrainLoader
from sftn_fast.data.source import Images

CPU = torch.device("cpu")


def images(count, size=8):
    draws = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, 3, size, size), generator=draws, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=draws)
    return DeviceImages.place(Images(pixels, labels), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), CPU)


def loader(count=50, batch_size=8, seed=0, padding=2, flip=True, **ranks):
    return TrainLoader(images(count), seed=seed, batch_size=batch_size, crop_padding=padding, flip=flip, **ranks)


def one_image(count):
    """Return the same image ``count`` times, so that only the augmentation differs."""
    data = images(1)
    return DeviceImages(data.pixels.expand(count, -1, -1, -1), data.labels.expand(count), data.mean, data.std)


# Training: a pure function of seed, epoch and step


def test_batches_do_not_depend_on_what_happened_before():
    train = loader()
    first = list(train.epoch(3))
    list(train.epoch(0))
    torch.manual_seed(99)
    assert same(first, train.epoch(3))
    assert same(first, loader().epoch(3))


def test_global_generators_stay_where_they_are():
    before = rng_states()
    list(loader().epoch(0))
    assert rng_states() == before


def test_interleaved_epochs_do_not_disturb_each_other():
    train = loader()
    first, second = zip(*zip(train.epoch(0), train.epoch(1), strict=True), strict=True)
    assert same(first, train.epoch(0))
    assert same(second, train.epoch(1))


@pytest.mark.parametrize("start", range(8))  # 6 full steps and a partial one; 7 is the epoch's end
def test_an_epoch_resumed_at_any_step_goes_on_with_the_same_bits(start):
    train = loader()
    whole, resumed = list(train.epoch(2)), list(train.epoch(2, start))
    assert len(resumed) == len(train) - start
    assert start == len(train) or same(whole[start:], resumed)


@pytest.mark.parametrize("start", [-1, 8])
def test_a_start_outside_the_epoch_is_refused(start):
    with pytest.raises(ValueError, match=f"start must be from 0 to 7, got {start}"):
        loader().epoch(0, start)


def test_seed_and_epoch_change_the_order():
    orders = [joined(loader(seed=seed).epoch(epoch))[2].tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize(("padding", "flip", "variants"), [(2, False, 25), (0, True, 2)])
def test_seed_and_epoch_change_the_augmentation(padding, flip, variants):
    def augmented(seed, epoch):
        train = TrainLoader(one_image(400), seed=seed, batch_size=400, crop_padding=padding, flip=flip)
        return next(train.epoch(epoch)).images.flatten(1)

    first = augmented(0, 0)
    for other in (augmented(0, 1), augmented(1, 0)):
        agreement = (first == other).all(1).float().mean()
        assert abs(agreement - 1 / variants) < 0.1  # by chance 1 in ``variants``, four standard deviations


def test_the_order_is_the_same_without_augmentation():
    plain, augmented = joined(loader(padding=0, flip=False).epoch(0)), joined(loader().epoch(0))
    assert torch.equal(plain[2], augmented[2])


def test_the_augmentation_is_the_same_at_another_batch_size():
    small, large = joined(loader(48, batch_size=4).epoch(0)), joined(loader(48, batch_size=16).epoch(0))
    assert all(map(torch.equal, small, large))


# Training: what is in a batch


@pytest.mark.parametrize("start", [0, 3])
def test_views_are_augmented_apart_and_resume_exactly(start):
    plain, train = list(loader().epoch(2)), loader().with_views(3)
    batches = list(train.epoch(2))
    assert same(batches[start:], train.epoch(2, start))
    for batch, single in zip(batches, plain, strict=True):
        assert batch.images.shape == (len(batch.index), 3, 3, 8, 8)
        assert torch.equal(batch.index, single.index)
        assert torch.equal(batch.images[:, 0], single.images)
    seen = joined(batches)[0]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        differing = (seen[:, first] != seen[:, second]).flatten(1).any(1).float().mean()
        assert differing > 0.8  # a window of 25 and a flip of 2 agree by chance in one image of 50


def test_views_of_ranks_are_those_of_one():
    whole = joined(loader(48).with_views(2).epoch(1))[0]
    shares = [list(loader(48, rank=rank, world_size=2).with_views(2).epoch(1)) for rank in (0, 1)]
    steps = chain.from_iterable(zip(*shares, strict=True))
    assert torch.equal(torch.cat([batch.images for batch in steps]), whole)


def test_each_image_comes_once_an_epoch_with_its_own_label_and_index():
    train = loader(padding=0, flip=False)
    pixels, target, index = joined(train.epoch(0))
    assert index.sort().values.tolist() == list(range(50))
    assert torch.equal(target, train.data.labels[index])
    expected = (train.data.pixels[index].double() / 255 - train.data.mean.double()) / train.data.std.double()
    torch.testing.assert_close(pixels.double(), expected, rtol=0, atol=1e-6)


def test_types_and_shapes():
    train = loader()
    batch = next(train.epoch(0))
    assert (batch.images.dtype, batch.images.shape) == (torch.float32, (8, 3, 8, 8))
    assert (batch.target.dtype, batch.index.dtype) == (torch.int64, torch.int64)
    assert train.data.pixels.dtype == torch.uint8


def test_offsets_and_flips_are_uniform():
    # An image that is its own coordinate system, with 1 in 64 lit: the lit pixel tells offset and flip.
    count, size, padding = 9000, 7, 1
    pixels = torch.zeros(count, 1, size, size, dtype=torch.uint8)
    pixels[:, :, 3, 2] = 255
    data = DeviceImages.place(Images(pixels, torch.zeros(count, dtype=torch.int64)), (0.0,), (1.0,), CPU)
    train = TrainLoader(data, seed=0, batch_size=1000, crop_padding=padding, flip=True)
    lit = joined(train.epoch(0))[0].flatten(1).argmax(1)
    variants = {
        (3 + down) * size + (column if not flipped else size - 1 - column)
        for down in (-1, 0, 1)
        for column in (1, 2, 3)
        for flipped in (False, True)
    }
    counts = torch.bincount(lit, minlength=size * size)
    assert set(counts.nonzero().flatten().tolist()) == variants
    # Column 3 is its own mirror image; the other variants have 1 in 18 each, standard deviation 22.
    for place in variants:
        expected = count / 9 if place % size == 3 else count / 18
        assert abs(int(counts[place]) - expected) < 150


@pytest.mark.parametrize(("padding", "flip", "variants"), [(0, False, 1), (0, True, 2), (1, False, 9), (1, True, 18)])
def test_only_the_augmentation_that_is_asked_for_happens(padding, flip, variants):
    train = TrainLoader(one_image(600), seed=0, batch_size=600, crop_padding=padding, flip=flip)
    assert len(next(train.epoch(0)).images.unique(dim=0)) == variants


# Training: several ranks


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "global_batches"),
    [
        (48, 12, 1, [12, 12, 12, 12]),
        (48, 12, 2, [12, 12, 12, 12]),
        (48, 12, 3, [12, 12, 12, 12]),
        (50, 12, 1, [12, 12, 12, 12, 2]),
        (49, 12, 1, [12, 12, 12, 12]),  # a last batch of one image is dropped
        (52, 12, 2, [12, 12, 12, 12, 4]),
        (50, 12, 2, [12, 12, 12, 12]),  # one image a rank: dropped
        (53, 12, 2, [12, 12, 12, 12, 4]),  # equal shares: one image is left out
        (54, 12, 3, [12, 12, 12, 12, 6]),
        (53, 12, 3, [12, 12, 12, 12]),
        (59, 12, 3, [12, 12, 12, 12, 9]),
        (7, 12, 1, [7]),  # a batch larger than the data set
        (7, 12, 3, [6]),
    ],
)
def test_ranks_together_see_what_one_sees(count, batch_size, world_size, global_batches):
    single = joined(loader(count, batch_size).epoch(1))
    ranks = [loader(count, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert {len(train) for train in ranks} == {len(global_batches)}

    first = 0
    for shares, size in zip(zip(*(train.epoch(1) for train in ranks), strict=True), global_batches, strict=True):
        assert [len(share.index) for share in shares] == [size // world_size] * world_size
        expected = tuple(part[first : first + size] for part in single)
        assert all(map(torch.equal, joined(shares), expected))
        first += size


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "message"),
    [
        (50, 10, 3, "optim.batch_size must be divisible by the 3 ranks, got 10"),
        (50, 3, 3, "optim.batch_size must be 2 or more for each of 3 ranks, got 3"),
        (5, 12, 3, "training images must be 2 or more for each of 3 ranks, got 5"),
    ],
)
def test_batches_that_can_not_be_shared_are_refused(count, batch_size, world_size, message):
    with pytest.raises(ConfigError, match=message):
        loader(count, batch_size, world_size=world_size)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_does_not_exist_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be from 0 to 1, got {rank}"):
        loader(rank=rank, world_size=2)


# Evaluation


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 600])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_image_is_evaluated_exactly_once(count, world_size):
    data = images(count, size=4)
    shards = [EvalLoader(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(shard) for shard in shards]
    assert [shard.num_samples for shard in shards] == [count] * world_size
    assert [len(shard) for shard in shards] == [len(shard_batches) for shard_batches in batches]
    pixels, target, index = joined(chain(*batches))
    assert index.tolist() == list(range(count))
    assert torch.equal(target, data.labels)
    expected = (data.pixels.double() / 255 - data.mean.double()) / data.std.double()
    torch.testing.assert_close(pixels.double(), expected, rtol=0, atol=1e-6)


def test_an_evaluation_can_be_repeated():
    evaluation = EvalLoader(images(300))
    assert same(evaluation, evaluation)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_the_gpu_are_those_on_the_cpu():
    on_cpu = images(50)
    fields = (getattr(on_cpu, name).cuda() for name in ("pixels", "labels", "mean", "std"))
    options = {"seed": 0, "batch_size": 8, "crop_padding": 2, "flip": True}
    cpu, gpu = (joined(TrainLoader(data, **options).epoch(0)) for data in (on_cpu, DeviceImages(*fields)))
    assert all(part.is_cuda for part in gpu)
    assert torch.equal(cpu[2], gpu[2].cpu())
    torch.testing.assert_close(cpu[0], gpu[0].cpu(), rtol=0, atol=1e-6)
