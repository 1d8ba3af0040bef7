"""Cost and memory as the work grows: batch, classes, CRD's bank, SFTN's branches, ranks.

Each series grows one size and leaves the others. Between neighbours stands the exponent e of time ~ size^e: 1 where
cost follows the size, 0 where it does not depend on it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor

from bench import chart, record
from bench.cases.case import Step, step
from bench.cases.contrastive import BATCH, DIM, NEGATIVES
from bench.cases.logits import kd_ce, sftn
from bench.family import Row
from bench.measure import cost, interleaved
from sftn_fast import ops

Build = Callable[[int], dict[str, Step]]
BANKS = (50_000, 200_000, 1_000_000, 5_000_000, 10_000_000)
NOTES = (
    "Time of forward and backward, in turns; peak is the memory allocated during a call. The exponent e is that of "
    "time ~ size^e since the size above: 1 where cost follows the size, 0 where it does not depend on it. Small sizes "
    "lie below 1 because a call through autograd has a price of its own. CRD scores as many rows whatever the bank's "
    "size, but fewer of them from the caches as it grows, and drawing negatives reads every label once. Ranks run one "
    "thread each and share the processor's caches and memory; each has a batch of its own, so that 0 would be perfect "
    "and 1 no gain."
)
ROOM = 2
"""Times the banks' own size that has to be free: one is drawn in float32 before it is half as large."""


def _crd(num_samples: int) -> dict[str, Step]:
    embeddings = [F.normalize(torch.randn(BATCH, DIM)).requires_grad_() for _ in range(2)]
    memory = ops.CRDMemory(num_samples, DIM, dtype=torch.float16)
    labels = torch.arange(num_samples) % 100
    index = torch.randint(num_samples, (BATCH,))

    def loss() -> Tensor:
        negatives = ops.sample_negatives(index, labels, NEGATIVES, dtype=torch.int32)
        return ops.crd_loss(*embeddings, index, negatives, memory)

    return {"ours": step(embeddings, loss)}


def _fits(num_samples: int) -> bool:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ROOM * 2 * num_samples * DIM * 2 < free


SERIES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "batch, KD + CE of 100 classes": (lambda n: kd_ce(n, 100, "cpu"), (16, 64, 256, 1024, 4096)),
    "classes, KD + CE of 64 images": (lambda c: kd_ce(64, c, "cpu"), (10, 100, 1000, 10_000, 100_000)),
    "branches, SFTN (256, 1000)": (lambda k: sftn(256, 1000, "cpu", num_branches=k), (1, 2, 3, 4, 6, 8)),
    "bank, CRD with its negatives, float16": (_crd, BANKS),
}
RANKS = "ranks, KD on resnet8, 32 images of 32 x 32 each"


def header() -> str:
    names = ["series", "size", "implementation", "p20 us", "p50 us", "p80 us", "n", "peak KiB"]
    return f"| {' | '.join(names)} |\n|---|---:|---|{'---:|' * 5}"


def line(row: Row) -> str:
    cells = [row["case"], f"{row['size']:,}", row["implementation"], row["p20"], row["p50"], row["p80"], row["n"]]
    return f"| {' | '.join(map(str, cells))} | {row['peak_bytes'] / 1024:,.0f} |"


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """The record under ``folder``: rows, page and picture."""
    how = f"{record.facts(about)}. {NOTES}"
    text = ["# scaling: time and memory as the work grows", "", how, "", f"![scaling]({name}.png)", ""]
    grown = {key: f" {value:.2f} |" for key, value in exponents(rows).items()}
    head, rule = header().splitlines()
    lines = [line(row) + grown.get((row["case"], row["implementation"], row["size"]), " |") for row in rows]
    record.save(name, about, rows, [*text, f"{head} exponent |", f"{rule}---:|", *lines], folder)
    _draw(folder / f"{name}.png", about, rows)


def _draw(path: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """A panel a series, both axes logarithmic: a straight line is a power, a bend is a change of what bounds it."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(2, len(cases), figsize=(3.6 * len(cases), 6), layout="constrained", squeeze=False)
    for case, (above, below) in zip(cases, panels.T, strict=True):
        for name, colour in (("eager", "#b5b5b5"), ("ours", chart.COLOURS["ours"])):
            seen = [row for row in rows if (row["case"], row["implementation"]) == (case, name)]
            sizes = [row["size"] for row in seen]
            if not seen:
                continue
            above.loglog(sizes, [row["p50"] / 1e3 for row in seen], "o-", color=colour, label=name)
            if all(row["peak_bytes"] for row in seen):
                below.loglog(sizes, [row["peak_bytes"] / 2**20 for row in seen], "o-", color=colour, label=name)
        above.set_title(case, fontsize=9)
        above.legend(frameon=False, fontsize=8)
        below.set_visible(bool(below.lines))
    panels[0, 0].set_ylabel("ms, median")
    panels[1, 0].set_ylabel("MiB, peak")
    figure.suptitle(f"scaling on {chart.place(about)}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def measure(seconds: float, report: Callable[[Row], None], *, compile: bool) -> list[Row]:
    """Rows of all series, each size for about ``seconds`` / 4; nothing here is compiled."""
    rows: list[Row] = []
    for series, (build, sizes) in SERIES.items():
        for size in sizes:
            if build is _crd and not _fits(size):
                print(f"{series}: {size:,} rows need more memory than is free")
                break
            for row in _rows(series, build, size, seconds / 4):
                rows.append(row)
                report(row)
    for row in _ranks():
        rows.append(row)
        report(row)
    return rows


def _rows(series: str, build: Build, size: int, seconds: float) -> Iterator[Row]:
    torch.manual_seed(0)
    steps = {name: run for name, run in build(size).items() if name in ("eager", "ours")}
    for run in steps.values():
        run()
    for name, timing in interleaved(dict(steps), seconds=seconds).items():
        times = {key: round(getattr(timing, key), 2) for key in ("p20", "p50", "p80")}
        peak = cost(steps[name]).peak_bytes
        yield {"case": series, "size": size, "implementation": name, "n": timing.n, **times, "peak_bytes": peak}


def _ranks() -> Iterator[Row]:
    """Training on one rank and on two, of one thread each; time is that of a step, all ranks' images in it."""
    for ranks in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            seen = _images_per_second(ranks, Path(folder))
        step_us = 1e6 * 32 * ranks / seen
        times = dict.fromkeys(("p20", "p50", "p80"), round(step_us, 2))
        yield {"case": RANKS, "size": ranks, "implementation": "ours", "n": 1, **times, "peak_bytes": 0}


def _images_per_second(ranks: int, folder: Path) -> float:
    options = {
        "--teacher": "resnet8",
        "--student": "resnet8",
        "--stages": "[teacher, distill]",
        "--seeds": "[0]",
        "--epochs": "2",
        "--data.name": "fake",
        "--data.train_size": "1024",
        "--optim.batch_size": str(32 * ranks),
        "--engine.threads": "1",
        "--output": str(folder / "run"),
    }
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [sys.executable, *launch, "-m", "sftn_fast.train", *(part for pair in options.items() for part in pair)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    result = json.loads((folder / "run" / "seed0" / "distill-teacher" / "result.json").read_text())
    return float(result["images_per_second"])


def exponents(rows: list[Row]) -> dict[tuple[str, str, int], float]:
    """For each row but a series' first: e of time ~ size^e since the size before."""
    found = {}
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["case"], row["implementation"]
        if key in last:
            growth = math.log(row["p50"] / last[key]["p50"])
            found[(*key, row["size"])] = growth / math.log(row["size"] / last[key]["size"])
        last[key] = row
    return found
