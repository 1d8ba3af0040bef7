"""Run everything that needs a GPU: `python -m bench.gpu OUTPUT_FOLDER [--second] [--device cpu] [--parts PART ...]`.

The first run loads the kernels, or builds them, and compares every loss with float64. It runs the tests of graphs and
compute-sanitizer, and measures losses, training steps and single kernels. --second adds larger sizes, peers and whole
trainings. Each part is a process with a time limit: one that fails, hangs or lacks a tool affects only its own line in
the table at the end. Without kernels the run ends. OUTPUT_FOLDER holds one archive, which is complete at any moment;
`python -m bench.gpu.read` reads it. `--device cpu` runs the parts that a CPU can run, as a test of this program.
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import shutil
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from bench.gpu import archive
from bench.gpu.libraries import CARRIED, architecture
from bench.gpu.part import Outcome, Part, tail
from bench.gpu.plan import PLANS, Stage
from bench.gpu.session import Session
from bench.gpu.stopping import Stopped, stop_on_signals
from sftn_fast.utils.atomic import describe


def figures(folder: Path) -> Iterator[str]:
    """Yield a line for each of our measured cases: the name, and how many times as fast it was as the authors' code."""
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text())["results"]:
            if "ratio" in row and row.get("implementation") != "eager":
                what = row.get("case") or row["loader"]
                yield f"{path.stem}: {what}, {row.get('implementation', '')}: {row['p50']:g}, {row['ratio']:.2f} times"


def unpack_wheels(carried: Path, site: Path) -> list[str]:
    """Unpack the carried wheels, which are pure Python, and return their names. Leave out damaged ones."""
    unpacked = []
    for wheel in sorted(carried.glob("wheels/*.whl")):
        try:
            with zipfile.ZipFile(wheel) as content:
                if content.testzip() is not None:
                    raise zipfile.BadZipFile("a file in it is damaged")
                content.extractall(site)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            print(f"{wheel.name} is left out: {error}", file=sys.stderr, flush=True)
        else:
            unpacked.append(wheel.name)
    return unpacked


def minutes(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError
    return value


def parse() -> argparse.Namespace:
    names = {part.name: run for run in PLANS for part in parts_of(run)}
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the archive")
    parser.add_argument("--second", action="store_true", help="the second run: larger sizes, peers, whole trainings")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=minutes, help="time of all parts together (default: 9.5, second run 4.5)")
    parser.add_argument("--parts", nargs="+", choices=sorted(names), metavar="PART", help=", ".join(sorted(names)))
    args = parser.parse_args()
    args.run = "second" if args.second else "first"
    others = [name for name in args.parts or () if name not in {part.name for part in parts_of(args.run)}]
    if others:
        parser.error(f"--parts {others[0]} is a part of the {names[others[0]]} run, and this is the {args.run} one")
    if args.device == "cuda":
        if not has_gpu():
            parser.error("PyTorch finds no GPU; use --device cpu for the parts that a CPU can run")
        try:
            architecture()
        except RuntimeError as error:  # of a driver that is too old, or a GPU that another process has broken
            parser.error(f"the GPU does not start: {str(error).partition(chr(10))[0]}")
    try:
        prepare(args.output, args.run)
    except OSError as error:
        parser.error(f"OUTPUT can't be written: {describe(error)}")
    return args


def parts_of(run: str) -> Iterator[Part]:
    return (part for stage in PLANS[run].stages("cpu", Path()) for part in stage)


def prepare(output: Path, run: str) -> None:
    """Make the folder of the archive.

    Raises:
        OSError: It can't be written, or has an archive of such a run already, which the new one would replace.
    """
    target = archive.target(output, run)
    if target.exists():
        raise FileExistsError(
            errno.EEXIST, "it is of an earlier run; name another folder, or move it away", str(target)
        )
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=output):
        pass


def main() -> int:
    args = parse()
    temporary = Path(tempfile.mkdtemp(prefix="sftn-session-"))
    folder = temporary / "session"
    (folder / "records").mkdir(parents=True)
    plan = PLANS[args.run]
    seconds = 60 * (plan.minutes if args.minutes is None else args.minutes)
    session = Session(args.run, args.device, folder, args.output, seconds)
    stopped = None
    with stop_on_signals():
        try:
            add_wheels(temporary / "site")
            stages = plan.stages(args.device, folder)
            session.execute([chosen for stage in stages if (chosen := only(stage, args.parts))])
        except Stopped as signal:
            stopped = signal
            session.save()
            print(stopped, file=sys.stderr, flush=True)
    show(session)
    if session.unsaved:
        print(f"the archive is not complete: {session.unsaved}. The files are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(temporary, ignore_errors=True)
    if stopped is not None:
        return 128 + stopped.signum
    failures = [outcome for outcome in session.outcomes if outcome.bad and not _replaced(outcome, session.outcomes)]
    return int(bool(failures))


def add_wheels(site: Path) -> None:
    """Make the carried wheels importable, in this process and in those that it starts."""
    wheels = unpack_wheels(CARRIED, site)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    sys.path.append(str(site))  # for the question whether a module is there
    print(f"wheels: {', '.join(wheels) or 'none'}", flush=True)


def show(session: Session) -> None:
    """Print the ends of failed parts' logs, the figures and the outcomes."""
    for outcome in session.outcomes:
        if outcome.bad:
            print(f"\n== end of {outcome.name}.log\n{tail(session.folder, outcome.name)}")
    print("", *figures(session.folder / "records"), "", *session.outcomes, "", session.target, sep="\n")


def only(stage: Stage, wanted: list[str] | None) -> Stage:
    """Return the parts of a stage that are wanted, with those that the run can't do without."""
    return tuple(part for part in stage if wanted is None or part.name in wanted or part.essential)


def _replaced(outcome: Outcome, outcomes: list[Outcome]) -> bool:
    """Return whether the build took the place of libraries that did not load."""
    return outcome.name == "load" and any(other.name == "build" and other.result == "ok" for other in outcomes)


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


if __name__ == "__main__":
    sys.exit(main())
