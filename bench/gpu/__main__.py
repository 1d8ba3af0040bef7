"""Run everything that needs a GPU: `python -m bench.gpu OUTPUT_FOLDER [--second] [--device cpu] [--parts PART ...]`.

The first run loads the kernels, or builds them, and compares every loss with float64. It runs the tests of graphs and
compute-sanitizer, and measures losses, training steps and single kernels. --second adds larger sizes, peers and whole
trainings. Each part is a process with a time limit: one that fails, hangs or lacks a tool affects only its own line in
the table at the end. Without kernels the run ends. OUTPUT_FOLDER holds one archive, which is complete at any moment;
`python -m bench.gpu.read` reads it. `--device cpu` runs the parts that a CPU can run, as a test of this program.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.gpu import archive
from bench.gpu.libraries import CARRIED
from bench.gpu.part import Outcome, run_together, tail
from bench.gpu.plan import PLANS, Stage

SAVE_EVERY = 15.0
"""Seconds between two archives while parts run: what is measured is lost only for so long."""


class Session:
    """A run in progress: its outcomes, and the archive that is written from them."""

    def __init__(self, run: str, device: str, folder: Path, output: Path, seconds: float) -> None:
        self.run, self.device, self.folder = run, device, folder
        self.target = output / f"{run}.tar.gz"
        self.outcomes: list[Outcome] = []
        self._end_at = time.monotonic() + seconds
        self._saved_at = -SAVE_EVERY

    @property
    def left(self) -> float:
        return max(0.0, self._end_at - time.monotonic())

    def execute(self, stages: Sequence[Stage]) -> None:
        """Run the stages one after the other, until an essential part fails."""
        for stage in stages:
            for part in stage:
                print(f"== {part.name}, at most {min(part.limit, self.left):.0f} s", flush=True)
            found = run_together(stage, self.folder, self.device, self.left, self.save_sometimes)
            lacking = self._lacking(stage, found)
            if lacking:
                print(f"the run ends: nothing works without {' and '.join(lacking)}", flush=True)
                break
        self.save()

    def _lacking(self, stage: Stage, found: list[Outcome]) -> list[str]:
        """Keep outcomes, run fallbacks, and return the names of essential parts that failed all the same."""
        lacking = []
        for part, outcome in zip(stage, found, strict=True):
            self.outcomes.append(outcome)
            print(outcome, flush=True)
            if outcome.result != "ok" and part.fallback is not None:
                (outcome,) = run_together([part.fallback], self.folder, self.device, self.left, self.save_sometimes)
                self.outcomes.append(outcome)
                print(outcome, flush=True)
            if outcome.result != "ok" and part.essential:
                lacking.append(part.name)
        self.save()
        return lacking

    def save_sometimes(self) -> None:
        if time.monotonic() - self._saved_at >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the archive as things stand."""
        self._saved_at = time.monotonic()
        about = self.folder / "about.json"
        session = {
            "run": self.run,
            "device": self.device,
            "date": datetime.date.today().isoformat(),
            "conditions": json.loads(about.read_text()) if about.exists() else {},
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }
        (self.folder / archive.SESSION).write_text(json.dumps(session, indent=1) + "\n")
        for name in archive.write(self.folder, self.target):
            print(f"left out of the archive: {name}", file=sys.stderr)


def figures(folder: Path) -> Iterator[str]:
    """Yield a line for each of our measured cases: the name, and how many times as fast it was as the authors' code."""
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text())["results"]:
            if "ratio" in row and row.get("implementation") != "eager":
                what = row.get("case") or row["loader"]
                yield f"{path.stem}: {what}, {row.get('implementation', '')}: {row['p50']:g}, {row['ratio']:.2f} times"


def unpack_wheels(carried: Path, site: Path) -> list[str]:
    """Unpack the carried wheels, which are pure Python, and return their names."""
    wheels = sorted(carried.glob("wheels/*.whl"))
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as content:
            content.extractall(site)
    return [wheel.name for wheel in wheels]


def parse() -> argparse.Namespace:
    names = {part.name for plan in PLANS.values() for stage in plan.stages("cpu", Path()) for part in stage}
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder for the archive")
    parser.add_argument("--second", action="store_true", help="the second run: larger sizes, peers, whole trainings")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, help="time of all parts together (default: 9.5, second run 4.5)")
    parser.add_argument("--parts", nargs="+", choices=sorted(names), metavar="PART", help=", ".join(sorted(names)))
    args = parser.parse_args()
    if args.device == "cuda" and not has_gpu():
        parser.error("PyTorch finds no GPU; use --device cpu for the parts that a CPU can run")
    return args


def main() -> int:
    args = parse()
    run = "second" if args.second else "first"
    plan = PLANS[run]
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "session"
        (folder / "records").mkdir(parents=True)
        wheels = unpack_wheels(CARRIED, Path(temporary) / "site")
        paths = [str(Path(temporary) / "site"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        sys.path.append(paths[0])  # for the question whether a module is there
        print(f"wheels: {', '.join(wheels) or 'none'}", flush=True)
        seconds = 60 * (plan.minutes if args.minutes is None else args.minutes)
        session = Session(run, args.device, folder, args.output, seconds)
        session.execute([chosen for stage in plan.stages(args.device, folder) if (chosen := only(stage, args.parts))])
        for outcome in session.outcomes:
            if outcome.bad:
                print(f"\n== end of {outcome.name}.log\n{tail(folder, outcome.name)}")
        print("", *figures(folder / "records"), "", *session.outcomes, "", session.target, sep="\n")
    failures = [outcome for outcome in session.outcomes if outcome.bad and not _replaced(outcome, session.outcomes)]
    return int(bool(failures))


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
