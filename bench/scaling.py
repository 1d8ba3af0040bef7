"""Cost and memory as the work grows: batch, classes, CRD's bank, SFTN's branches, ranks.

Each series grows one size and keeps the others. Between neighbours it gives the exponent e of time ~ size^e: 1 if the
cost is proportional to the size, 0 if it does not depend on it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogFormatter, NullLocator
from torch import Tensor

from bench import chart, record
from bench.cases.case import step
from bench.cases.contrastive import BATCH, DIM, NEGATIVES
from bench.cases.logits import kd_ce, sftn
from bench.measure import Effort, Spread, cost, interleaved
from bench.record import Row
from sftn_fast import ops

Build = Callable[[int], Mapping[str, Callable[[], object]]]
BANKS = (50_000, 200_000, 1_000_000, 5_000_000, 10_000_000)
LARGEST = 5_000_000
"""The largest bank, unless all is asked for. To draw ten million rows takes as long as to measure all other sizes."""
IMAGES_A_RANK = 32
RANKS, RANK_TURNS = (1, 2), 3
SECONDS_A_RUN, SECONDS_A_BANK, SECONDS_A_SIZE = 12.0, 6.0, 1.0  # on bench.progress.REFERENCE
NOTES = (
    "Time of forward and backward, in turns; n counts calls. Peak is the memory allocated during a call, results "
    "included; banks, which a run holds all the time, are not in it: in float16 512 bytes an image. The exponent e is "
    "that of time ~ size^e since the size above: 1 where cost follows the size, 0 where it does not depend on it. "
    "Small sizes lie below 1 because a call through autograd has a price of its own, and where an op begins to use "
    "all threads the curve bends down for one size; on one thread it does not. At 100,000 classes a tensor is of 25 "
    "MB, and PyTorch's temporaries get fresh pages from the kernel in every call: above 1 for `eager`. Each branch of "
    "SFTN costs the same, on top of the call and the teacher's own loss: below 1, towards 1. CRD scores as many rows "
    "whatever the bank's size, but fewer of them from the caches as it grows; drawing negatives, which is also shown "
    "alone, reads every label once, so that its share grows. Ranks run one thread each and share the processor's "
    "caches and memory; n counts whole runs, in turns, and the time is that of a step with the images of all ranks in "
    "it: 0 would be perfect and 1 no gain. Their peak is the resident memory of the largest process, with Python, "
    "PyTorch and all images."
)
SHOWN = ("eager", "ours", "ours, drawing alone")
ROOM = 2
"""Free memory needed, in multiples of the banks' size: a bank is drawn in float32 before it is converted."""


def _crd(num_samples: int) -> Mapping[str, Callable[[], object]]:
    embeddings = [F.normalize(torch.randn(BATCH, DIM)).requires_grad_() for _ in range(2)]
    memory = ops.CRDMemory(num_samples, DIM, dtype=torch.float16)
    labels = torch.arange(num_samples) % 100
    index = torch.randint(num_samples, (BATCH,))

    def draw() -> Tensor:
        return ops.sample_negatives(index, labels, NEGATIVES, dtype=torch.int32)

    return {
        "ours": step(embeddings, lambda: ops.crd_loss(*embeddings, index, draw(), memory)),
        "ours, drawing alone": draw,
    }


def _fits(num_samples: int) -> bool:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return ROOM * 2 * num_samples * DIM * 2 < free


SERIES: dict[str, tuple[Build, tuple[int, ...]]] = {
    "batch, KD + CE of 100 classes": (lambda n: kd_ce(n, 100, "cpu"), (16, 64, 256, 1024, 4096)),
    "classes, KD + CE of 64 images": (lambda c: kd_ce(64, c, "cpu"), (10, 100, 1000, 10_000, 100_000)),
    "branches, SFTN (256, 1000)": (lambda k: sftn(256, 1000, "cpu", num_branches=k), (1, 2, 3, 4, 6, 8)),
    "bank, CRD with its negatives, float16": (_crd, BANKS),
}
RANKS_SERIES = f"ranks, KD on resnet8, {IMAGES_A_RANK} images each"
PEAK_OF_CHILDREN = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""A program that runs a command and prints the KiB of its largest process. It is a process in between, because on Linux
a process starts with the peak of its parent, and this one has held the banks."""


def header(device: str) -> str:
    names = ["series", "size", "implementation", "p20 us", "p50 us", "p80 us", "n", "peak KiB"]
    return f"| {' | '.join(names)} |\n|---|---:|---|{'---:|' * 5}"


def line(row: Row) -> str:
    cells = [row["case"], f"{row['size']:,}", row["implementation"], row["p20"], row["p50"], row["p80"], row["n"]]
    return f"| {' | '.join(map(str, cells))} | {row['peak_bytes'] / 1024:,.0f} |"


def write(name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None:
    """Write the record under ``folder``: rows, page and picture."""
    how = f"{record.facts(about)}. {record.ending(about, intervals=False)}{NOTES}"
    text = ["# scaling: time and memory as the work grows", "", how, "", f"![scaling]({name}.png)", ""]
    grown = {key: f" {value:.2f} |" for key, value in exponents(rows).items()}
    head, rule = header(about["device"]).splitlines()
    lines = [line(row) + grown.get((row["case"], row["implementation"], row["size"]), " |") for row in rows]
    record.save(name, about, rows, [*text, f"{head} exponent |", f"{rule}---:|", *lines], folder)
    _draw(folder / f"{name}.png", about, rows)


def _draw(path: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """Draw a panel for each series, both axes logarithmic: a line is a power, a bend a change of the bottleneck."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(2, len(cases), figsize=(3.6 * len(cases), 6), layout="constrained", squeeze=False)
    for case, (above, below) in zip(cases, panels.T, strict=True):
        for name in SHOWN:
            seen = [row for row in rows if (row["case"], row["implementation"]) == (case, name)]
            if not seen:
                continue
            sizes, colour = [row["size"] for row in seen], chart.COLOURS[name]
            p20, p50, p80 = ([row[key] / 1e3 for row in seen] for key in ("p20", "p50", "p80"))
            above.loglog(sizes, p50, "o-", color=colour, label=name)
            above.fill_between(sizes, p20, p80, color=colour, alpha=0.2, linewidth=0)
            below.loglog(sizes, [row["peak_bytes"] / 2**20 for row in seen], "o-", color=colour)
        above.set_title(case, fontsize=8)
        above.legend(frameon=False, fontsize=8)
        for axes in (above, below):
            _label(axes, case.split(",")[0], [row["size"] for row in rows if row["case"] == case])
    panels[0, 0].set_ylabel("ms, median and p20 to p80")
    panels[1, 0].set_ylabel("MiB, peak")
    figure.suptitle(f"scaling on {chart.place(about)}; all axes logarithmic", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _label(axes: Axes, what: str, sizes: list[int]) -> None:
    """Label the measured sizes, and show at least a decade of y, so that a small change does not fill the panel."""
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(sizes))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda size, _: _short(round(size)))
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(what)
    low, high = axes.get_ylim()
    widen = max(1.0, math.sqrt(10 * low / high))
    axes.set_ylim(low / widen, high * widen)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.4)))
    axes.tick_params(axis="y", which="both", labelsize=8)


def _short(size: int) -> str:
    for unit, letter in ((10**6, "M"), (10**3, "k")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def expected(effort: Effort, device: str) -> float:
    """Return about how many seconds the suite takes."""
    sizes = {build: len(_wanted(build, sizes, effort)) for build, sizes in SERIES.values()}
    banks = sizes.pop(_crd)
    ranks = RANK_TURNS * len(RANKS) if effort.further else 0
    return SECONDS_A_SIZE * sum(sizes.values()) + SECONDS_A_BANK * banks + SECONDS_A_RUN * ranks


def measure(about: dict[str, Any], effort: Effort) -> Iterator[Row]:
    """Yield rows of all series, each size measured for at most about a case's seconds, without torch.compile.

    Ranks and the largest bank are measured on request.
    """
    for series, (build, sizes) in SERIES.items():
        for size in _wanted(build, sizes, effort):
            if build is _crd and not _fits(size):
                print(f"{series}: {size:,} rows need more memory than is free")
                break
            yield from _rows(series, build, size, effort)
    if effort.further:
        yield from _ranks()


def _wanted(build: Build, sizes: tuple[int, ...], effort: Effort) -> list[int]:
    return [size for size in sizes if effort.further or build is not _crd or size <= LARGEST]


def _rows(series: str, build: Build, size: int, effort: Effort) -> Iterator[Row]:
    torch.manual_seed(0)
    steps = {name: run for name, run in build(size).items() if name in SHOWN}
    for run in steps.values():
        run()
    for name, spread in interleaved(dict(steps), seconds=effort.seconds, within=effort.within).items():
        peak = cost(steps[name]).peak_bytes
        yield {"case": series, "size": size, "implementation": name, **spread.row(), "peak_bytes": peak}


def _ranks() -> Iterator[Row]:
    """Yield rows of training on one rank and on two, one thread each. Time is of a step with all ranks' images."""
    step_us: dict[int, list[float]] = {ranks: [] for ranks in RANKS}
    peaks = dict.fromkeys(RANKS, 0)
    for _ in range(RANK_TURNS):
        for ranks in RANKS:
            images_per_second, peak_bytes = _train(ranks)
            step_us[ranks].append(1e6 * IMAGES_A_RANK * ranks / images_per_second)
            peaks[ranks] = max(peaks[ranks], peak_bytes)
    for ranks, times in step_us.items():
        about = {"case": RANKS_SERIES, "size": ranks, "implementation": "ours"}
        yield {**about, **Spread.of(times).row(), "peak_bytes": peaks[ranks]}


def _train(ranks: int) -> tuple[float, int]:
    """Return the images per second of all ranks together, and the peak of resident bytes of the largest process."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        options = {
            "--teacher": "resnet8",
            "--student": "resnet8",
            "--stages": "[teacher, distill]",
            "--seeds": "[0]",
            "--epochs": "2",
            "--stage_epochs": "{teacher: 1}",
            "--data.name": "fake",
            "--data.train_size": "1024",
            "--optim.batch_size": str(IMAGES_A_RANK * ranks),
            "--engine.threads": "1",
            "--output": str(output),
        }
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m", "sftn_fast.train"]
        command = [sys.executable, *launch, *(part for pair in options.items() for part in pair)]
        with (Path(folder) / "log").open("w+") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            arguments = [sys.executable, "-c", PEAK_OF_CHILDREN, *command]
            done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=log, env=environment, check=False)
            if done.returncode:
                log.seek(0)
                raise RuntimeError(f"training on {ranks} ranks failed:\n{log.read()}")
        result = json.loads((output / "seed0" / "distill-teacher" / "result.json").read_text())
    return float(result["images_per_second"]), 1024 * int(done.stdout)


def exponents(rows: list[Row]) -> dict[tuple[str, str, int], float]:
    """Return, for each row except a series' first, e of time ~ size^e relative to the previous size."""
    found = {}
    last: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["case"], row["implementation"]
        if key in last:
            growth = math.log(row["p50"] / last[key]["p50"])
            found[(*key, row["size"])] = growth / math.log(row["size"] / last[key]["size"])
        last[key] = row
    return found
