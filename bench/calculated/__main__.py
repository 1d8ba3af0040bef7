"""Calculate the times of the CUDA kernels on an H200: `python -m bench.calculated [CASE ...]`.

Needs nvcc and cuobjdump, no GPU. Writes bench/results/calculated-h200.json and .md and the table of docs/benchmarks.md.
With names of cases, prints those and writes nothing, or with --record only these.
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
from bench.calculated.launches import SAMPLE, count
from bench.calculated.table import Finding, calculate
from bench.record import RESULTS
from sftn_fast.utils.atomic import describe

DOCS = machine_code.ROOT / "docs" / "benchmarks.md"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.calculated", description=(__doc__ or "").splitlines()[0])
    names = [case.name for case in CASES]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"the beginning of a name: {'; '.join(names)}")
    parser.add_argument("--record", action="store_true", help="write the named cases, beside the others of the record")
    parser.add_argument("--library", type=Path, help="a _C_cuda.so built for sm_90 from these sources; else nvcc runs")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder of records (default: bench/results)")
    args = parser.parse_args()
    unknown = [begin for begin in args.cases if not any(name.startswith(begin) for name in names)]
    if args.record and not args.cases:
        parser.error("--record is for named cases: without names, all are written")
    if unknown:
        parser.error(f"no case begins with {unknown[0]!r}; there are {', '.join(names)}")
    return args


def main() -> None:
    args = parse()
    try:
        run(args)
    except (OSError, RuntimeError, ValueError) as error:
        sys.exit(f"python -m bench.calculated: {describe(error) if isinstance(error, OSError) else error}")


def run(args: argparse.Namespace) -> None:
    """Calculate, print and write.

    Raises:
        OSError: A file can't be read or written.
        RuntimeError: A tool is missing, or failed.
        ValueError: The library is not of these sources, or a file has no place for the table.
    """
    from tests.simt.build import load

    # What is wrong with tools and files is said before the work.
    files = machine_code.extract(args.library) if args.library else None
    about = conditions(compiled=files is None)
    writes = args.record or not args.cases
    earlier = page.recorded(args.folder, about) if args.record else []
    if writes:
        page.refreshed(DOCS.read_text(), [])
        args.folder.mkdir(parents=True, exist_ok=True)
    emulator, counted = load(), []
    for case in CASES:
        if not args.cases or case.name.startswith(tuple(args.cases)):
            print(f"counting {case.name}", file=sys.stderr, flush=True)
            call = case.build()
            counted.append((case, call, count(emulator, call.run, sample=0 if case.whole else SAMPLE)))
    launched = {launch.kernel for _, _, launches in counted for launch in launches.kernels}
    kernels = machine_code.read(files or machine_code.compile_for(launched), launched)
    findings: list[Finding] = []
    for case, call, launches in counted:
        findings.append(calculate(case, call, launches, kernels))
        if args.cases:
            print(f"\n{page.details(findings[-1])}\n")
    print(page.summary(findings))
    if writes:
        by_name = {finding.case: finding for finding in [*earlier, *findings]}
        page.write([by_name[case.name] for case in CASES if case.name in by_name], args.folder, DOCS, about)


def conditions(*, compiled: bool) -> dict[str, str]:
    """Return what a calculation depends on. RuntimeError if a tool is missing."""
    machine_code.find_tool("cuobjdump")
    about = {"date": datetime.date.today().isoformat()}
    if compiled:
        said = machine_code.output_of(machine_code.find_tool("nvcc"), "--version")
        about["nvcc"] = re.findall(r"release ([\d.]+)", said)[-1]
    return {**about, "torch": torch.__version__}


if __name__ == "__main__":
    main()
