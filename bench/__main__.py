"""Measure the kernels and record the figures with the machine they come from: `python -m bench [FAMILY ...]`.

Prints a table for each family and writes bench/results/FAMILY-DEVICE.json, .md and .png. With --check it writes
nothing: it fails if a kernel's speed over the authors' code has fallen below what is recorded there.
`python -m bench loaders` measures the loaders of image files instead, of which there is no --check.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory is not the subject

import torch

from bench import chart, loaders, record
from bench.cases import FAMILIES
from bench.check import TOLERANCE, compare
from bench.family import Effort, Row, measure
from sftn_fast import ops
from sftn_fast.info import version_of

LOADERS = "loaders"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    names = f"of {', '.join(FAMILIES)} (default: all these), {LOADERS}"
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=names)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=50, help="turns of each implementation (default: 50)")
    parser.add_argument("--seconds", type=float, default=20.0, help="fewer turns if a case takes more (default: 20)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the authors' code")
    parser.add_argument("--check", action="store_true", help=f"compare with the record; at most {TOLERANCE:.0%} less")
    parser.add_argument("--folder", type=Path, default=record.RESULTS, help="of the records (default: bench/results)")
    args = parser.parse_args()
    unknown = sorted(set(args.families) - {*FAMILIES, LOADERS})
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}, {LOADERS}")
    if LOADERS in args.families and (args.check or args.device != "cpu"):
        parser.error(f"{LOADERS} are measured on the CPU, and not checked")
    return args


def run(family: str, device: str, effort: Effort) -> tuple[dict, list[Row]]:
    about = record.conditions(device)
    print(f"\n# {family}", *(f"{key}: {value}" for key, value in about.items()), "", record.header(device), sep="\n")
    bandwidth = 1e9 * about["copy GB/s"]
    with ops.backend("fused"):
        return about, measure(family, device, effort, bandwidth, lambda row: print(record.line(row), flush=True))


def measure_loaders(turns: int, folder: Path) -> None:
    """Images a second of the loaders, in bench/results/loaders-cpu.json and .md."""
    about = record.conditions("cpu")
    about |= {name: version_of(module) for name, module in (("DALI", "nvidia.dali"), ("torchvision", "torchvision"))}
    print(f"\n# {LOADERS}", *(f"{key}: {value}" for key, value in about.items()), "", loaders.HEADER, sep="\n")
    rows = loaders.measure(loaders.default_workers(), turns, lambda row: print(loaders.line(row), flush=True))
    record.write_files(f"{LOADERS}-cpu", about, rows, loaders.text(about, rows), folder)


def check(family: str, name: str, device: str, effort: Effort, folder: Path) -> bool:
    """Whether no kernel of a family has become slower, compared with the authors' code."""
    try:
        _, recorded = record.read(name, folder)
    except FileNotFoundError:
        print(f"\n{family}: nothing recorded in {folder / name}.json")
        return True
    _, rows = run(family, device, effort)
    verdicts = compare(recorded, rows)
    print("", *verdicts, sep="\n")
    return not any(verdict.regressed for verdict in verdicts)


def main() -> None:
    args = parse()
    effort = Effort(args.turns, args.seconds, compile=not (args.no_compile or args.check))
    good = True
    for family in args.families or FAMILIES:
        if family == LOADERS:
            measure_loaders(min(args.turns, loaders.TURNS), args.folder)
            continue
        name = f"{family}-{args.device}"
        if args.check:
            good = check(family, name, args.device, effort, args.folder) and good
            continue
        about, rows = run(family, args.device, effort)
        record.write(name, family, args.device, about, rows, args.folder)
        chart.draw(args.folder / f"{name}.png", family, about, rows)
    sys.exit(not good)


if __name__ == "__main__":
    main()
