"""Read the archives of a session into the records and redraw the pages: `python -m bench.gpu.read ARCHIVE ...`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import record
from bench.__main__ import SUITES
from bench.gpu import archive
from bench.gpu.part import Outcome
from bench.readme import refresh
from sftn_fast.utils.atomic import describe, write_atomically

PROFILE = "ncu.md"


def read(source: Path, results: Path) -> list[str]:
    """Write the records of an archive, with their pages and charts, under ``results``. Return the records' names.

    Raises:
        ArchiveError: The file is no archive of a session, one without a GPU for the records of the project, or one of
            another GPU than the records that are there. Nothing is written.
    """
    return read_all([source], results)[0]


def read_all(sources: Sequence[Path], results: Path) -> list[list[str]]:
    """Read archives, later ones over earlier ones, as :func:`read` does: all of them or none."""
    with tempfile.TemporaryDirectory() as temporary:
        ready = Path(temporary) / "ready"
        ready.mkdir()
        names, places = [], _places(results)
        for i, source in enumerate(sources):
            folder = Path(temporary) / str(i)
            session = archive.extract(source, folder)
            _refuse_others(source, session, results, places)
            names.append(_render(source, session, folder, ready, results))
        results.mkdir(parents=True, exist_ok=True)
        for path in sorted(ready.iterdir()):
            write_atomically(results / path.name, path.read_bytes())
    return names


def _places(results: Path) -> dict[str, str]:
    """Return the processor that each kind of device in ``results`` has figures of."""
    places = {}
    for path in sorted(results.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(path.read_text())["conditions"]
            places[about["device"]] = about["processor"]
    return places


def _refuse_others(source: Path, session: dict[str, Any], results: Path, places: dict[str, str]) -> None:
    """Raise ArchiveError for a rehearsal in the project's records, and for figures of another GPU than those there."""
    device, place = session["device"], session["conditions"].get("processor")
    if device != "cuda" and results.resolve() == record.RESULTS.resolve():
        raise archive.ArchiveError(f"{source}: a rehearsal without a GPU; read it into another folder: --results")
    if place and places.setdefault(device, place) != place:
        raise archive.ArchiveError(
            f"{source}: measured on {place}, and {results} has figures of {places[device]}; "
            "read it into another folder: --results"
        )


def _render(source: Path, session: dict[str, Any], folder: Path, ready: Path, results: Path) -> list[str]:
    """Write what an archive holds into the folder ``ready``, and return the records' names."""
    names = []
    for path in sorted(folder.glob("records/*.json")):
        if f"-{session['device']}" not in path.stem:
            raise archive.ArchiveError(f"{source}: its {path.name} is not of the session's device, {session['device']}")
        try:
            names.append(_rewrite(path.stem, path.parent, ready))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise archive.ArchiveError(
                f"{source}: its {path.name} is no record ({type(error).__name__}: {error})"
            ) from error
    _write_session(session, ready, results)
    if (folder / PROFILE).exists():
        shutil.copyfile(folder / PROFILE, ready / f"kernels-{session['device']}.md")
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


def _write_session(session: dict[str, Any], ready: Path, results: Path) -> None:
    """Write what each part of the run came to. Parts that it did not run keep what an earlier one said of them."""
    name = f"session-{session['device']}-{session['run']}"
    earlier = _earlier(name, ready) or _earlier(name, results)
    outcomes = [Outcome(**fields) for fields in session["outcomes"]]
    if earlier:
        again = {outcome.name for outcome in outcomes}
        date = f" ({earlier['date']})" if earlier["date"] != session["date"] else ""
        kept = [Outcome(**fields) for fields in earlier["outcomes"] if fields["name"] not in again]
        outcomes += [replace(outcome, detail=f"{outcome.detail}{date}") for outcome in kept]
    session = session | {"outcomes": [asdict(outcome) for outcome in outcomes]}
    (ready / f"{name}.json").write_text(json.dumps(session, indent=1) + "\n")
    lines = [f"| {o.name} | {o.result} | {o.seconds:.1f} | {o.detail.replace('|', '/')} |" for o in outcomes]
    text = [f"# {session['run']} run on a GPU", "", record.facts({"date": session["date"], **session["conditions"]})]
    table = ["", "| part | result | seconds | last line |", "|---|---|---:|---|", *lines]
    (ready / f"{name}.md").write_text("\n".join([*text, *table]) + "\n")


def _earlier(name: str, folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        found["date"], [Outcome(**fields) for fields in found["outcomes"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.read", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    parser.add_argument(
        "--results", type=Path, default=record.RESULTS, help="folder of records (default: bench/results)"
    )
    args = parser.parse_args()
    try:
        found = read_all(args.archives, args.results)
    except archive.ArchiveError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(describe(error))
    for source, names in zip(args.archives, found, strict=True):
        print(f"{source}: {', '.join(names) or 'no records'}")
    if args.results.resolve() == record.RESULTS.resolve():
        refresh()


if __name__ == "__main__":
    sys.exit(main())
