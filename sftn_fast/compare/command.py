"""The command ``python -m sftn_fast.compare RUN RUN ...``. Needs no torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftn_fast.config import ConfigError, check
from sftn_fast.report.compared_curves import plot_runs
from sftn_fast.report.compared_runs import ComparedRun, read_runs
from sftn_fast.report.comparison import describe_runs, jobs_of
from sftn_fast.report.figure import is_own_picture
from sftn_fast.report.terminal import terminal_width
from sftn_fast.utils import program
from sftn_fast.utils.paths import expand_user, output_file, refuse_input, require_named
from sftn_fast.utils.run_files import OWN, SAMPLES
from sftn_fast.utils.text import counted, escape

DEFAULT = "comparison.png"
DESCRIPTION = """\
Compare several runs: the settings that differ, the results, their differences from the first run, and the learning
curves in one picture. A run without results is left out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the run folders named in ``argv``; return the exit code.

    0: done. 1: the picture can't be written. 2: the command line is wrong, or fewer than two runs have results.
    """
    return program.run(_main, argv, output_matters=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=program.name_of("compare"), description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, such as runs/demo; two or more")
    parser.add_argument("--output", metavar="FILE", help=f"PNG file for the learning curves (default: {DEFAULT})")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace FILE if it exists; an older comparison of the default name is"
    )
    return parser


def _main(argv: list[str]) -> int:
    given = parser().parse_args(argv)
    require_named({"RUN": given.runs, "--output": given.output})
    folders = [expand_user(run) for run in given.runs]
    check(len(folders) > 1, "RUN", given.runs[0], "two folders or more")
    may_replace = given.overwrite or (given.output is None and is_own_picture(Path(DEFAULT)))
    path = output_file(given.output or DEFAULT, overwrite=may_replace)
    check(path.suffix.lower() == ".png", "--output", str(path), "a file whose name ends in .png")
    refuse_input(path, "--output", (picture for folder in folders for picture in _pictures(folder)))
    runs, left_out = read_runs(folders)
    for sentence in left_out:
        print(f"left out: {escape(sentence)}", file=sys.stderr)
    where = _draw(runs, path, must=given.output is not None)
    print(describe_runs(runs, width=terminal_width()), end="")
    print(f"\n{where}")
    return 0


def _pictures(folder: Path) -> Iterator[Path]:
    """Yield the pictures of a run, which are not to be replaced by one of several runs."""
    yield from (folder / name for name in OWN if name.endswith(".png"))
    yield from (folder / SAMPLES).glob("*.png")


def _draw(runs: Sequence[ComparedRun], path: Path, *, must: bool) -> str:
    """Draw the curves into ``path``; return a line that says where, or why not unless there ``must`` be a picture."""
    try:
        unseen = plot_runs(runs, jobs_of(runs), path)
        why = "no run has a training that was evaluated twice or more" if unseen is None else ""
    except ImportError as error:
        why = f"matplotlib can't be imported ({error}); pip install matplotlib"
    if why and must:
        raise ConfigError(f"--output can't be drawn: {why}")
    return (
        f"no plot: {why}"
        if why
        else f"plot: {escape(path)}" + (f" (without {counted(unseen, 'training')})" if unseen else "")
    )
