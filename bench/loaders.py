"""Images per second of the loaders of image files and of the loader in PyTorch's ImageNet example.

Run `python -m bench loaders`. The files are generated, with ImageNet's usual sizes in pixels and bytes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench import record
from bench.measure import MIN_TURNS, Effort, Spread
from bench.record import Row
from sftn_fast.data import resources
from sftn_fast.data.dali_decoder import DaliDecoder
from sftn_fast.data.file_loaders import FileSplit, FileTrainLoader, ImageFormat
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder
from sftn_fast.info import version_of

FILES, BATCH, SIZE = 512, 64, 224
SHAPES = ((500, 375), (500, 375), (375, 500), (500, 333))  # width, height
BLOTS = ((4, 96), (16, 64), (64, 42), (256, 64))  # number across and strength: energy at every scale
QUALITY = 94
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EAGER = "DataLoader with PIL"
TURNS = 5  # of whole epochs, at most
SECONDS_AN_EPOCH = 0.4  # of a loader, about
SECONDS_A_TURN, SECONDS_TO_START = 4.0, 10.0  # of all loaders, on bench.progress.REFERENCE

Loader = Callable[[int], Iterable[int]]


def make_files(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of about 100 kB. The first tenth are distinct; the rest are copies, because only reading matters."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    distinct: list[bytes] = []
    paths = [folder / f"{i:05}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        if i < -(-count // 10):
            width, height = SHAPES[i % len(SHAPES)]
            pixels = np.full((height, width, 3), 128.0, np.float32)
            for across, strength in BLOTS:
                shape = (max(2, across * height // 500), max(2, across * width // 500), 3)
                blots = Image.fromarray(draws.integers(256, size=shape, dtype=np.uint8))
                pixels += strength * (np.asarray(blots.resize((width, height), Image.Resampling.BICUBIC)) / 255 - 0.5)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
            distinct.append(path.read_bytes())
        else:
            path.write_bytes(distinct[i % len(distinct)])
    return paths


def loaders(paths: Sequence[Path], workers: int) -> dict[str, Loader]:
    """Return, for each loader, a function from the epoch to the sizes of its batches."""
    form = ImageFormat(SIZE, MEAN, STD, torch.device("cpu"))
    files = FileSplit([str(path) for path in paths], torch.zeros(len(paths), dtype=torch.int64))

    def ours(decoder: Any) -> Loader:
        train = FileTrainLoader(files, decoder, seed=0, batch_size=BATCH, flip=True)
        return lambda epoch: (len(batch.images) for batch in train.epoch(epoch))

    options: dict[str, Any] = {"workers": workers, "root": paths[0].parent}
    return {
        EAGER: lambda epoch: (len(images) for images, _ in eager_loader(files, workers)),
        "torchvision": ours(TorchvisionDecoder(form, **options)),
        "DALI": ours(DaliDecoder(form, **options)),
        "DALI, resizing too": ours(DaliDecoder(form, resize=True, **options)),
        "decode only": lambda epoch: decode_only(paths, workers),
    }


def eager_loader(files: FileSplit, workers: int) -> DataLoader[Any]:
    """Build the loader of PyTorch's ImageNet example."""
    from torchvision import transforms

    parts = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*parts, transforms.Normalize(MEAN, STD)])
    return DataLoader(EagerFiles(files, transform), batch_size=BATCH, shuffle=True, num_workers=workers)


class EagerFiles(Dataset[Any]):
    def __init__(self, files: FileSplit, transform: Callable[[Any], Any]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        with Image.open(self.files.paths[index]) as image:
            return self.transform(image.convert("RGB")), int(self.files.labels[index])


def decode_only(paths: Sequence[Path], workers: int) -> Iterator[int]:
    """Decode whole files by libjpeg-turbo in as many threads and discard them: the floor of a loader's time."""
    from torchvision.io import ImageReadMode, decode_jpeg, read_file

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(lambda path: decode_jpeg(read_file(str(path)), ImageReadMode.RGB), paths):
            yield 1


def _turns(effort: Effort) -> int:
    return max(MIN_TURNS, min(TURNS, round(effort.seconds / SECONDS_AN_EPOCH)))


def expected(effort: Effort, device: str) -> float:
    """Return about how many seconds the suite takes."""
    return SECONDS_TO_START + _turns(effort) * SECONDS_A_TURN


def measure(about: dict[str, Any], effort: Effort) -> Iterator[Row]:
    """Measure whole epochs of each loader in turn, including its start, and yield a row for each."""
    workers, turns = default_workers(), _turns(effort)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_files(Path(folder), FILES)
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        steps = loaders(paths, workers)
        speeds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(turns + 1):
            for name, epoch in steps.items():
                start = time.perf_counter()
                count = sum(epoch(turn))
                assert count == len(paths), f"{name}: {count} images of {len(paths)}"
                if turn:  # the first turn starts servers and fills caches
                    speeds[name].append(count / (time.perf_counter() - start))
    spreads = {name: Spread.of(found) for name, found in speeds.items()}
    for name, spread in spreads.items():
        ratio = round(spread.p50 / spreads[EAGER].p50, 3)
        yield {"loader": name, **spread.row(), "ratio": ratio, "workers": workers, "kB a file": round(kilobytes, 1)}


def header(device: str) -> str:
    names = ["loader", "p20 images/s", "p50 images/s", "p80 images/s", "n", "times DataLoader (p50)"]
    return f"| {' | '.join(names)} |\n|---|{'---:|' * 5}"


def line(row: Row) -> str:
    speeds = " | ".join(f"{row[key]:.0f}" for key in ("p20", "p50", "p80"))
    return f"| {row['loader']} | {speeds} | {row['n']} | {row['ratio']:.2f} |"


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the record under ``folder``: rows and page."""
    packages = (("DALI", "nvidia.dali"), ("torchvision", "torchvision"))
    about = about | {key: version_of(module) for key, module in packages}
    how = (
        f"{record.facts(about)}. {FILES} JPEGs of {rows[0]['kB a file']} kB and about 500 x 375 pixels, training "
        f"batches of {BATCH} at {SIZE} pixels, {rows[0]['workers']} workers each, file cache warm. Loaders take turns "
        f"of an epoch, their start included; n counts epochs. `{EAGER}` is what PyTorch's example for ImageNet does; "
        "`decode only` throws the decoded images away."
    )
    text = ["# loaders: images a second", "", how, "", header(about["device"]), *map(line, rows)]
    record.save(name, about, rows, text, folder)


def default_workers() -> int:
    return resources.cores()
