"""Measure kernels and whole training, and record the results with their machine: `python -m bench [FAMILY ...]`.

Families are those of the kernels; `training`, whole steps; `loaders`, loaders of image files; `scaling`, cost as the
work grows; `host`, the price of a call. Prints a table for each and writes bench/results/FAMILY-DEVICE.json, .md and,
except of `host`, .png. Of kernels on a CPU the name has the level of vector instructions too: FAMILY-cpu-LEVEL. It ends
with -large and -graph for measurements with these options. SFTN_CPU_CAPABILITY sets the level of both the kernels and
PyTorch; with --levels kernels are measured at avx2 and at avx512, if the machine has both. With --check it writes
nothing and fails if a speedup over the authors' code, or over the usual loop, is below the one recorded at this level.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silence the profiler, which only counts memory

import torch

from bench import host, levels, loaders, record, scaling
from bench.cases import FAMILIES
from bench.check import TOLERANCE, compare
from bench.family import Kernels
from bench.measure import Effort
from bench.progress import Part, Progress
from bench.record import Row
from bench.training import suite as training
from sftn_fast import ops
from sftn_fast.ops import _capability


class Suite(Protocol):
    """A measurement that yields rows and knows how to show them."""

    def expected(self, effort: Effort, device: str) -> float: ...
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
SECONDS, SECONDS_OF_STEPS = 2.0, 10.0
"""Approximate seconds of a case, and of one of whole steps."""
WITHIN = 0.02


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").splitlines()[0])
    names = ", ".join(SUITES)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"any of {names} (default: all of --device)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument(
        "--levels", action="store_true", help="kernels at avx2 and at avx512, each in a process (default: at one level)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="what no table needs, too: ours in plain PyTorch, torch.compile at the lower level, variants, ranks",
    )
    parser.add_argument("--turns", type=int, default=50, help="turns of each implementation, at most (default: 50)")
    parser.add_argument(
        "--seconds",
        type=float,
        help=f"approximate seconds for each case, at most (default: {SECONDS:g}, of steps {SECONDS_OF_STEPS:g})",
    )
    parser.add_argument(
        "--within",
        type=float,
        default=WITHIN,
        help=f"end a case when its ratios are known to this part of their value, 0 for never (default: {WITHIN:g})",
    )
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
    unfair = unfair or (levels.missing() if args.levels and args.device == "cpu" else None)
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
    suite, about, rows = SUITES[family], record.conditions(device) | record.limits(effort), []
    about |= {"graphs": True} if effort.graphs else {}
    print(f"\n# {family}", *(f"{key}: {value}" for key, value in about.items()), sep="\n")
    print(f"\n{suite.header(device)}")
    with ops.backend("fused"):
        for row in suite.measure(about, effort):
            rows.append(row)
            print(suite.line(row), flush=True)
            save(about, rows)
    return about, rows


def check(family: str, name: str, device: str, effort: Effort, folder: Path) -> bool:
    """Return whether no case of a family has become slower, compared with the authors' code at the same level."""
    try:
        conditions, recorded = record.read(name, folder)
    except FileNotFoundError:
        print(f"\n{family}: nothing recorded in {folder / name}.json")
        return True
    if device == "cpu" and levels.of(conditions) != _capability.current():
        print(f"\n{family}: recorded at level {levels.of(conditions)}, not at {_capability.current()}")
        return True
    _, rows = run(family, device, effort)
    verdicts = compare(recorded, rows)
    print("", *verdicts, sep="\n")
    return not any(verdict.regressed for verdict in verdicts)


def effort_for(suite: str, args: argparse.Namespace, level: str | None) -> Effort:
    """Return how to measure a suite. Where there are two levels, torch.compile runs at the higher one."""
    lower = level is not None and level != levels.to_measure()[-1]
    return Effort(
        args.turns,
        (SECONDS_OF_STEPS if suite == "training" else SECONDS) if args.seconds is None else args.seconds,
        compile=not (args.no_compile or args.check) and (args.all or not lower),
        within=args.within,
        further=args.all,
        graphs=args.graphs,
        large=args.large,
        cases=tuple(args.cases),
        implementations=tuple(args.implementations),
    )


def measure(suite: str, args: argparse.Namespace, level: str | None) -> bool:
    """Measure or check a suite in this process, and return whether all went well."""
    effort = effort_for(suite, args, level)
    level = level or (_capability.current() if suite in FAMILIES and args.device == "cpu" else None)
    name = record.named(suite, args.device, level, "large" * args.large, "graph" * args.graphs, args.label)
    if args.check:
        return check(suite, name, args.device, effort, args.folder)
    about, rows = run(suite, args.device, effort, partial(record.save_rows, name, folder=args.folder))
    SUITES[suite].write(name, about, rows, args.folder)
    return not any("error" in row and row["implementation"] == "ours" for row in rows)


def measure_apart(suite: str, args: argparse.Namespace, level: str) -> bool:
    """Measure or check a suite in a process of its own, at this level, and return whether all went well."""
    effort = effort_for(suite, args, level)
    values = {"device": args.device, "turns": effort.turns, "seconds": effort.seconds, "within": effort.within}
    values |= {"folder": args.folder, **({"label": args.label} if args.label else {})}
    flags = [f"--{name}" for name in ("all", "large", "check") if getattr(args, name)]
    flags += [] if effort.compile or args.check else ["--no-compile"]
    lists = [[f"--{name}", *given] for name in ("cases", "implementations") if (given := getattr(args, name))]
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bench", suite, *options, *flags, *(word for words in lists for word in words)]
    environment = {**os.environ, _capability.VARIABLE: level, "ATEN_CPU_CAPABILITY": level}
    return subprocess.run(command, env=environment, check=False).returncode == 0


def parts(args: argparse.Namespace) -> list[Part]:
    """Return what to measure, in order."""
    found = []
    for suite in args.families or SUITES:
        if suite in CPU_ONLY and (args.check or args.device != "cpu"):
            continue
        apart = levels.to_measure() if args.levels and args.device == "cpu" and suite in FAMILIES else ()
        for level in apart if len(apart) > 1 else (None,):
            expected = SUITES[suite].expected(effort_for(suite, args, level), args.device)
            found.append(Part(suite, level, expected))
    return found


def main() -> None:
    # an exception, so that the process of a level is not left behind
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    args = parse()
    todo = parts(args)
    progress, several, good = Progress(todo), len(todo) > 1, True
    if several:
        print(progress.plan())
    for number, part in enumerate(todo):
        if several:
            print(f"\n{progress.at(number)}", flush=True)
        if part.level:
            good = measure_apart(part.suite, args, part.level) and good
        else:
            good = measure(part.suite, args, None) and good
    sys.exit(not good)


if __name__ == "__main__":
    main()
