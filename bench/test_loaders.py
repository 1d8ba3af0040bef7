"""The loaders of image files under pytest-benchmark: `python -m pytest bench`."""

from __future__ import annotations

import pytest

from bench.loaders import BATCH, default_workers, loaders, make_files

COUNT = 2 * BATCH
NAMES = ("DataLoader with PIL", "torchvision", "DALI", "DALI, resizing too", "decode only")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("jpegs"), COUNT)


@pytest.mark.parametrize("name", NAMES)
def test_epoch(benchmark, paths, name):
    benchmark.group = f"{COUNT} JPEGs"
    epoch = loaders(paths, default_workers())[name]
    assert benchmark.pedantic(lambda: sum(epoch(0)), rounds=3, warmup_rounds=1) == COUNT
