"""Images per second of DALI's decoder on a GPU and on the CPU beside it: `python -m bench.gpu.decode FOLDER`."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from bench import loaders, record
from bench.measure import MIN_TURNS, Spread, synchronize
from sftn_fast.data.dali_decoder import DaliDecoder
from sftn_fast.data.file_loaders import FileSplit, FileTrainLoader, ImageFormat


def measure(folder: Path) -> list[record.Row]:
    """Measure whole epochs in turn and return a row for each decoder."""
    paths = loaders.make_files(folder, loaders.FILES)
    files = FileSplit([str(path) for path in paths], torch.zeros(len(paths), dtype=torch.int64))
    train = {}
    for device in ("cpu", "cuda"):
        form = ImageFormat(loaders.SIZE, loaders.MEAN, loaders.STD, torch.device(device))
        decoder = DaliDecoder(form, workers=loaders.default_workers(), root=folder)
        train[device] = FileTrainLoader(files, decoder, seed=0, batch_size=loaders.BATCH, flip=True)
    speeds: dict[str, list[float]] = {device: [] for device in train}
    for epoch in range(1 + MIN_TURNS):
        for device, loader in train.items():
            start = time.perf_counter()
            count = sum(len(batch.images) for batch in loader.epoch(epoch))
            synchronize("cuda")
            if epoch:  # the first one starts threads and fills caches
                speeds[device].append(count / (time.perf_counter() - start))
    spreads = {device: Spread.of(found) for device, found in speeds.items()}
    usual = spreads["cpu"].p50
    return [
        {"loader": f"DALI on {device}", **spread.row(), "ratio": round(spread.p50 / usual, 3)}
        for device, spread in spreads.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.decode")
    parser.add_argument("folder", type=Path, help="folder of records")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as images:
        rows = measure(Path(images))
    record.save_rows("decoders-cuda", record.conditions("cuda"), rows, args.folder)
    print(*(f"{row['loader']}: {row['p50']:.0f} images/s" for row in rows), sep="; ")


if __name__ == "__main__":
    main()
