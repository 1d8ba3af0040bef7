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
    folders = _folders(argv, "compare", "RUN", "Compare several runs: settings that differ, and results.")
    check(len(folders) > 1, "RUN", str(folders[0]), "two folders or more")
    print(compare(folders, terminal_width()), end="")
    return 0


def _main(argv: list[str]) -> int:
    folders = _folders(argv, "report", "FOLDER", "Write and print the report of a run, or compare several runs.")
    width = terminal_width()
    print(write(folders[0], width=width) if len(folders) == 1 else compare(folders, width), end="")
    return 0


def _folders(argv: list[str], program_name: str, metavar: str, description: str) -> list[Path]:
    """Return the run folders that ``argv`` names."""
    prog = f"python -m sftn_fast.{program_name}"
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument("folders", metavar=metavar, nargs="+", type=Path, help="a run's folder, such as runs/demo")
    return [folder.expanduser() for folder in parser.parse_args(argv).folders]
