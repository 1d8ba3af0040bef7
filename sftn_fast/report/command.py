"""The command ``python -m sftn_fast.report FOLDER ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sftn_fast.config import check
from sftn_fast.report.comparison import compare
from sftn_fast.report.terminal import terminal_width
from sftn_fast.report.writer import write
from sftn_fast.utils import program


def main(argv: Sequence[str] | None = None) -> int:
    """Report on the run folder named in ``argv``, or compare several; return the exit code.

    0: done. 1: a file can't be written. 2: the command line is wrong, or a folder has no results.
    """
    return program.run(_main, argv, output_matters=True)


def compare_main(argv: Sequence[str] | None = None) -> int:
    """Compare the run folders named in ``argv``; return the exit code, as :func:`main` does."""
    return program.run(_compare, argv, output_matters=True)


def _compare(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sftn_fast.compare",
        description="Compare several runs: settings that differ, and results.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", metavar="RUN", nargs="+", type=Path, help="a run's folder, such as runs/demo")
    folders = [folder.expanduser() for folder in parser.parse_args(argv).folders]
    check(len(folders) > 1, "RUN", str(folders[0]), "two folders or more")
    print(compare(folders, terminal_width()), end="")
    return 0


def _main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sftn_fast.report",
        description="Write and print the report of a run, or compare several runs.",
        allow_abbrev=False,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="a run's folder, such as runs/demo")
    folders = [folder.expanduser() for folder in parser.parse_args(argv).folders]
    width = terminal_width()
    print(write(folders[0], width=width) if len(folders) == 1 else compare(folders, width), end="")
    return 0
