"""Measure kernels and whole training, and record the results with their machine: `python -m bench [FAMILY ...]`.

Families are those of the kernels; `training`, whole steps; `loaders`, loaders of image files; `scaling`, cost as the
work grows; `host`, the price of a call. Prints a table for each and writes bench/results/FAMILY-DEVICE.json, .md and,
except of `host`, .png; the name ends with -large and -graph for measurements with these options. With --check it writes
nothing and fails if a speedup over the authors' code, or over the usual loop, is below the recorded one.
SFTN_CPU_CAPABILITY sets the level of vector instructions of both the kernels and PyTorch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silence the profiler, which only counts memory

import torch

from bench import host, loaders, record, scaling
from bench.cases import FAMILIES
from bench.check import TOLERANCE, compare
from bench.family import Kernels
from bench.measure import Effort
from bench.record import Row
from bench.training import suite as training
from sftn_fast import ops


class Suite(Protocol):
    """A measurement that yields rows and knows how to show them."""

    def header(self, device: str) -> str: ...
    def line(self, row: Row) -> str: ...
    def measure(self, about: dict[str, Any], effort: Effort) -> Iterable[Row]: ...
    def write(self, name: str, about: dict[str, Any], rows: list[Row], folder: Path) -> None: ...


SUITES: dict[str, Suite] = {
    **{family: Kernels(family) for family in FAMILIES},
    "training": training,
    "loaders": loaders,
    "scaling": scaling,
    "host": host,
}
CPU_ONLY = ("loaders", "scaling", "host")
"""Suites that are measured on the CPU only. --check does not compare them."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    names = ", ".join(SUITES)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"any of {names} (default: all of --device)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=50, help="turns of each implementation (default: 50)")
    parser.add_argument("--seconds", type=float, default=20.0, help="approximate seconds for each case (default: 20)")
    parser.add_argument("--no-compile", action="store_true", help="skip the authors' code under torch.compile")
    parser.add_argument("--graphs", action="store_true", help="measure replays of CUDA graphs (for --device cuda)")
    parser.add_argument(
        "--large", action="store_true", help="measure the cases beyond a GPU's L2 and in half precision"
    )
    parser.add_argument(
        "--cases", nargs="+", default=(), metavar="NAME", help="cases whose names begin so (default: all)"
    )
    parser.add_argument("--label", default="", help="an end of the record's name, to keep an earlier record")
    parser.add_argument(
        "--implementations", nargs="+", default=(), metavar="NAME", help="of these and eager (default: all)"
    )
    parser.add_argument(
        "--check", action="store_true", help=f"compare with the record; fail if {TOLERANCE:.0%}% slower"
    )
    parser.add_argument(
        "--folder", type=Path, default=record.RESULTS, help="folder of records (default: bench/results)"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.families) - SUITES.keys())
    if unknown:
        parser.error(f"no family {', '.join(unknown)}; there are {names}")
    if args.device != "cpu" and set(args.families) & set(CPU_ONLY):
        parser.error(f"{', '.join(CPU_ONLY[:-1])} and {CPU_ONLY[-1]} are measured on the CPU: --device cpu")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: --device cpu")
    unfair = record.mismatch() if args.device == "cpu" else None
    if unfair:
        parser.error(unfair)
    if args.graphs and args.device != "cuda":
        parser.error("--graphs: there are CUDA graphs with --device cuda only")
    if (args.graphs or args.large) and set(args.families or SUITES) - set(FAMILIES):
        parser.error(f"--graphs and --large are for {', '.join(FAMILIES)}: name the families")
    return args


def run(
    family: str, device: str, effort: Effort, save: Callable[[dict[str, Any], list[Row]], None] = lambda *_: None
) -> tuple[dict[str, Any], list[Row]]:
    """Measure a family and return its conditions and rows. Each row is printed and saved as soon as it is measured."""
    suite, about, rows = SUITES[family], record.conditions(device) | ({"graphs": True} if effort.graphs else {}), []
    print(f"\n# {family}", *(f"{key}: {value}" for key, value in about.items()), sep="\n")
    print(f"\n{suite.header(device)}")
    with ops.backend("fused"):
        for row in suite.measure(about, effort):
            rows.append(row)
            print(suite.line(row), flush=True)
            save(about, rows)
    return about, rows


def check(family: str, name: str, device: str, effort: Effort, folder: Path) -> bool:
    """Return whether no case of a family has become slower, compared with the authors' code."""
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
    effort = Effort(
        args.turns,
        args.seconds,
        compile=not (args.no_compile or args.check),
        graphs=args.graphs,
        large=args.large,
        cases=tuple(args.cases),
        implementations=tuple(args.implementations),
    )
    good = True
    for family in args.families or SUITES:
        name = f"{family}-{args.device}{'-large' * args.large}{'-graph' * args.graphs}{args.label and f'-{args.label}'}"
        if family in CPU_ONLY and (args.check or args.device != "cpu"):
            continue
        if args.check:
            good = check(family, name, args.device, effort, args.folder) and good
            continue
        about, rows = run(family, args.device, effort, partial(record.save_rows, name, folder=args.folder))
        SUITES[family].write(name, about, rows, args.folder)
        good = good and not any("error" in row and row["implementation"] == "ours" for row in rows)
    sys.exit(not good)


if __name__ == "__main__":
    main()
