"""Measure kernels and whole training, and record the figures with their machine: `python -m bench [FAMILY ...]`.

Families are those of the kernels; `training`, whole steps; `loaders`, those of image files; `scaling`, cost as the
work grows. Prints a table for each and writes bench/results/FAMILY-DEVICE.json, .md and .png. With --check it writes
nothing: it fails if a speed over the authors' code, or over the usual loop, has fallen below what is recorded there.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory is not the subject

import torch

from bench import chart, loaders, record, scaling
from bench.cases import FAMILIES
from bench.check import TOLERANCE, compare
from bench.family import Effort, Row, measure
from bench.training import suite as training
from sftn_fast import ops

SUITES: dict[str, Any] = {"training": training, "loaders": loaders, "scaling": scaling}
"""What is no family of kernels; each measures, formats and writes for itself, on the CPU."""

UNCHECKED = ("loaders", "scaling")
"""Those that are held against no record."""

ALL = (*FAMILIES, *SUITES)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"of {', '.join(ALL)} (default: all)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=50, help="turns of each implementation (default: 50)")
    parser.add_argument("--seconds", type=float, default=20.0, help="a case may take, roughly (default: 20)")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile of the authors' code")
    parser.add_argument("--check", action="store_true", help=f"compare with the record; at most {TOLERANCE:.0%}% less")
    parser.add_argument("--folder", type=Path, default=record.RESULTS, help="of the records (default: bench/results)")
    args = parser.parse_args()
    unknown = sorted(set(args.families) - set(ALL))
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {', '.join(ALL)}")
    if args.device != "cpu" and set(args.families) & SUITES.keys():
        parser.error(f"{' and '.join(SUITES)} are measured on the CPU: --device cpu")
    return args


def run(family: str, device: str, effort: Effort) -> tuple[dict, list[Row]]:
    about = record.conditions(device)
    print(f"\n# {family}", *(f"{key}: {value}" for key, value in about.items()), sep="\n")
    if family in SUITES:
        return about, run_suite(SUITES[family], effort)
    print(f"\n{record.header(device)}")
    bandwidth = 1e9 * about["copy GB/s"]
    with ops.backend("fused"):
        return about, measure(family, device, effort, bandwidth, lambda row: print(record.line(row), flush=True))


def run_suite(suite: Any, effort: Effort) -> list[Row]:
    print(f"\n{suite.header()}")
    with ops.backend("fused"):
        return suite.measure(effort.seconds, lambda row: print(suite.line(row), flush=True), compile=effort.compile)


def check(family: str, name: str, device: str, effort: Effort, folder: Path) -> bool:
    """Whether nothing of a family has become slower, compared with the authors' code."""
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
    for family in args.families or (ALL if args.device == "cpu" else FAMILIES):
        name = f"{family}-{args.device}"
        if args.check and family in UNCHECKED:
            continue
        if args.check:
            good = check(family, name, args.device, effort, args.folder) and good
            continue
        about, rows = run(family, args.device, effort)
        if family in SUITES:
            SUITES[family].write(name, about, rows, args.folder)
            continue
        record.write(name, family, args.device, about, rows, args.folder)
        chart.draw(args.folder / f"{name}.png", family, about, rows)
    sys.exit(not good)


if __name__ == "__main__":
    main()
