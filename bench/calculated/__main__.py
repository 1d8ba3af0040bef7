"""Calculate the times of the CUDA kernels on an H200: `python -m bench.calculated [CASE ...]`.

Needs nvcc and cuobjdump, no GPU. Writes bench/results/calculated-h200.json and .md and the table of docs/benchmarks.md.
With names of cases, prints those and writes nothing.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from pathlib import Path

import torch

from bench.calculated import machine_code, page
from bench.calculated.cases import CASES
from bench.calculated.launches import count
from bench.calculated.table import Finding, calculate
from bench.record import RESULTS

DOCS = machine_code.ROOT / "docs" / "benchmarks.md"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.calculated", description=(__doc__ or "").splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"the beginning of a name: {'; '.join(names)}")
    parser.add_argument("--library", type=Path, help="a _C_cuda.so built for sm_90 from these sources; else nvcc runs")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder of records (default: bench/results)")
    args = parser.parse_args()
    unknown = [begin for begin in args.cases if not any(name.startswith(begin) for name in names)]
    if unknown:
        parser.error(f"no case begins with {unknown[0]!r}; there are {', '.join(names)}")
    return args


def main() -> None:
    args = parse()
    from tests.simt.build import load

    wanted = [case for case in CASES if not args.cases or case.name.startswith(tuple(args.cases))]
    emulator, counted = load(), []
    for case in wanted:
        print(f"counting {case.name}", file=sys.stderr, flush=True)
        call = case.build()
        counted.append((case, call, count(emulator, call.run)))
    files = machine_code.extract(args.library) if args.library else machine_code.compile_all()
    launched = {launch.kernel for _, _, launches in counted for launch in launches.kernels}
    kernels = machine_code.read(files, launched)
    findings: list[Finding] = []
    for case, call, launches in counted:
        findings.append(calculate(case, call, launches, kernels))
        if args.cases:
            print(f"\n{page.details(findings[-1])}\n")
    print(page.summary(findings))
    if not args.cases:
        version = re.findall(r"release ([\d.]+)", machine_code.output_of(machine_code.find_tool("nvcc"), "--version"))
        about = {"date": datetime.date.today().isoformat(), "nvcc": version[-1], "torch": torch.__version__}
        page.write(findings, args.folder, DOCS, about)


if __name__ == "__main__":
    main()
