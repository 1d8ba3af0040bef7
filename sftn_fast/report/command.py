"""The command ``python -m sftn_fast.report FOLDER ...``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from sftn_fast.config import check
from sftn_fast.report.comparison import compare
from sftn_fast.report.terminal import terminal_width
from sftn_fast.report.writer import write
from sftn_fast.utils import program
from sftn_fast.utils.paths import expand_user


def main(argv: Sequence[str] | None = None) -> int:
    """Report on the run folder named in ``argv``, or compare several; return the exit code.

    0: done. 1: a file can't be written. 2: the command line is wrong, or a folder has no results.
    """
    return program.run(_main, argv, output_matters=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    description = "Write and print the report of a run, or compare several runs."
    parser = argparse.ArgumentParser(prog=program.name_of("report"), description=description, allow_abbrev=False)
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="a run's folder, such as runs/demo")
    return parser


def _main(argv: list[str]) -> int:
    names = parser().parse_args(argv).folders
    folders = [expand_user(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        is_folder = bool(name) and os.path.isdir(folder)  # noqa: PTH112  pathlib's may raise
        check(is_folder, "FOLDER", name, "the folder of a run")
    width = terminal_width()
    print(write(folders[0], width=width) if len(folders) == 1 else compare(folders, width), end="")
    return 0
