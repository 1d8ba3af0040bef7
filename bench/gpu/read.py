"""Read the archives of a session into the records and redraw the pages: `python -m bench.gpu.read ARCHIVE ...`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import record
from bench.__main__ import SUITES
from bench.gpu import archive
from bench.gpu.part import Outcome
from bench.readme import refresh

PROFILE = "ncu.md"


def read(source: Path, results: Path) -> list[str]:
    """Write the records of an archive, with their pages and charts, under ``results``. Return the records' names.

    Raises:
        ArchiveError: the file is no archive of a session, or one without a GPU for the records of the project.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        session = archive.extract(source, folder)
        if session["device"] != "cuda" and results.resolve() == record.RESULTS.resolve():
            raise archive.ArchiveError(f"{source}: a rehearsal without a GPU; read it into another folder: --results")
        names = [_rewrite(path.stem, path.parent, results) for path in sorted(folder.glob("records/*.json"))]
        _keep_session(session, results)
        if (folder / PROFILE).exists():
            shutil.copyfile(folder / PROFILE, results / f"kernels-{session['device']}.md")
    return names


def _rewrite(name: str, source: Path, results: Path) -> str:
    """Write a record's rows, page and chart again, as far as it got before the end of its time."""
    about, rows = record.read(name, source)
    family = re.split("-(?:cuda|cpu)", name)[0]
    if family in SUITES:
        SUITES[family].write(name, about, rows, results)
    else:
        record.save_rows(name, about, rows, results)
    return name


def _keep_session(session: dict[str, Any], results: Path) -> None:
    """Write what each part of the run came to."""
    results.mkdir(parents=True, exist_ok=True)
    name = f"session-{session['device']}-{session['run']}"
    (results / f"{name}.json").write_text(json.dumps(session, indent=1) + "\n")
    outcomes = [Outcome(**fields) for fields in session["outcomes"]]
    lines = [f"| {o.name} | {o.result} | {o.seconds:.1f} | {o.detail.replace('|', '/')} |" for o in outcomes]
    text = [f"# {session['run']} run on a GPU", "", record.facts({"date": session["date"], **session["conditions"]})]
    table = ["", "| part | result | seconds | last line |", "|---|---|---:|---|", *lines]
    (results / f"{name}.md").write_text("\n".join([*text, *table]) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.read", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    parser.add_argument(
        "--results", type=Path, default=record.RESULTS, help="folder of records (default: bench/results)"
    )
    args = parser.parse_args()
    for source in args.archives:
        try:
            names = read(source, args.results)
        except archive.ArchiveError as error:
            parser.error(str(error))
        print(f"{source}: {', '.join(names) or 'no records'}")
    if args.results.resolve() == record.RESULTS.resolve():
        refresh()


if __name__ == "__main__":
    sys.exit(main())
