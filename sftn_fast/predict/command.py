"""The command ``python -m sftn_fast.predict STUDENT IMAGE ...``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sftn_fast.config import ConfigError, check
from sftn_fast.utils import program
from sftn_fast.utils.atomic import describe, write_atomically
from sftn_fast.utils.csv_text import csv_text
from sftn_fast.utils.paths import expand_user, output_file, refuse_input, require_named
from sftn_fast.utils.text import as_bytes, counted, escape

DESCRIPTION = """\
Classify images by a network that training exported. Prints the likeliest classes of each image; for a folder, a CSV
with a line for each image in it. Nothing is printed or written unless all images can be decoded, or
--skip-undecodable is given."""
SKIPPED = 3
"""Exit code if images were left out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code.

    0: done. 1: the CSV can't be written. 2: the command line, the network or an image can't be used. 3: done, but
    images were left out.
    """
    return program.run(_main, argv, output_matters=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=program.name_of("predict"), description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("student", metavar="STUDENT", help="folder of an exported network, such as runs/demo/student")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or one folder")
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write the CSV of a folder to FILE instead of printing it")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    parser.add_argument(
        "--skip-undecodable",
        action="store_true",
        help=f"leave out images that can't be decoded, list them on standard error, and end with exit code {SKIPPED}",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--plugins", nargs="*", default=[], help="Python files or modules that register the network")
    return parser


def _main(argv: list[str]) -> int:
    given = parser().parse_args(argv)
    check(given.top >= 1, "--top", given.top, "at least 1")
    named = {"STUDENT": given.student, "IMAGE": given.images, "--output": given.output, "--plugins": given.plugins}
    require_named(named)
    paths, folder = _images(given.images)
    check(folder is not None or given.output is None, "--output", given.output, "given with a folder of images only")
    output = None if given.output is None else output_file(given.output, overwrite=given.overwrite)
    # Imported late: they bring torch, which --help and a refused option can do without.
    from sftn_fast import models
    from sftn_fast.data.decode import DecodeError
    from sftn_fast.engine import resolve_device
    from sftn_fast.predict.classifier import Classifier, Prediction
    from sftn_fast.utils import derived_files, plugins
    from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar

    if folder is not None:
        paths = _images_in(folder)
    if output is not None:
        models.check_not_of_export(output, "--output")
        refuse_input(output, "--output", [*paths, *map(expand_user, given.plugins)])
    plugins.load(given.plugins)
    classifier = Classifier(given.student, resolve_device(given.device, "--device"))
    rows: list[tuple[Path, list[Prediction]]] = []
    skipped: list[str] = []

    def skip(path: str | Path, reason: DecodeError) -> None:
        skipped.append(f"{escape(path)} can't be decoded ({reason})")

    label = f"classifying images in {folder}" if folder is not None else "classifying images"
    with ProgressBar(len(paths), start=None, label=label, unit="images", line_interval=LINE_INTERVAL) as progress:
        found = classifier.predict(paths, top=given.top, on_undecodable=skip if given.skip_undecodable else None)
        for done, (path, classes) in enumerate(zip(paths, found, strict=True), start=1):
            if classes is not None:
                rows.append((path, classes))
            progress.update(done)
    if not rows:
        fault = "the only image is not" if len(paths) == 1 else f"none of {len(paths):,} images is"
        raise ConfigError(f"{fault} usable: {skipped[0]}")
    for line in skipped:
        print(f"left out: {line}", file=sys.stderr)
    if folder is None:
        for path, classes in rows:
            shown = ", ".join(f"{each.name} {100 * each.probability:.1f} %" for each in classes)
            print(escape(f"{path}: {shown}"))
    else:
        _write_csv(_table([(str(path.relative_to(folder)), classes) for path, classes in rows]), output)
        if output is not None:
            derived_files.record(expand_user(given.student), output, classifier.sha256, deployed=False)
    return SKIPPED if skipped else 0


def _write_csv(rows: Sequence[Sequence[str]], output: Path | None) -> None:
    """Write the CSV with the names as they are; only on a terminal, characters in them that do harm are escaped."""
    if output is not None:
        write_atomically(output, as_bytes(csv_text(rows)))
        print(escape(f"{counted(len(rows) - 1, 'image')}: {output}"), file=sys.stderr)
    elif sys.stdout.isatty():
        print(csv_text([[escape(cell) for cell in row] for row in rows]), end="")
    elif hasattr(sys.stdout, "buffer"):
        sys.stdout.flush()
        sys.stdout.buffer.write(as_bytes(csv_text(rows)))
    else:  # a stream of text that other code has put in its place
        print(csv_text(rows), end="")


def _images(names: Sequence[str]) -> tuple[list[Path], Path | None]:
    """Return the files, or the folder that is named instead."""
    paths = [expand_user(name) for name in names]
    try:
        folders = [path for path in paths if path.is_dir()]
        missing = [path for path in paths if not path.exists()]
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise ConfigError(f"IMAGE {describe(error)}") from error
    if folders and len(paths) > 1:
        raise ConfigError(f"IMAGE must be image files or one folder, got the folder {folders[0]} and others")
    if missing:
        raise ConfigError(f"IMAGE {missing[0]} does not exist")
    return (paths, None) if not folders else ([], folders[0])


def _images_in(folder: Path) -> list[Path]:
    from sftn_fast.data.folders import image_files
    from sftn_fast.data.ignored_files import IgnoredFiles

    ignored = IgnoredFiles()
    paths = image_files(folder, ignored)
    ignored.report(folder)
    check(bool(paths), "IMAGE", str(folder), "a folder with images")
    return paths


def _table(rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> list[list[str]]:
    numbers = range(1, len(rows[0][1]) + 1)
    heading = ["image", *(f"{what}{number}" for number in numbers for what in ("class", "probability"))]
    return [heading, *([name, *(cell for each, p in found for cell in (each, f"{p:.6f}"))] for name, found in rows)]
