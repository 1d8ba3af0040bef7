"""The command ``python -m sftn_fast.predict STUDENT IMAGE ...``."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from sftn_fast.config import ConfigError, check
from sftn_fast.utils import program
from sftn_fast.utils.text import escape

DESCRIPTION = """\
Classify images by a network that training exported. Prints the likeliest classes of each image; for a folder, a CSV
with a line for each image in it. Nothing is printed or written unless all images can be decoded."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code. 2: the network or an image can't be used."""
    return program.run(_main, argv, output_matters=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m sftn_fast.predict", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("student", metavar="STUDENT", help="folder of an exported network, such as runs/demo/student")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or one folder")
    parser.add_argument("--top", metavar="N", type=int, default=5, help="classes per image (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="write the CSV of a folder to FILE instead of printing it")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--plugins", nargs="*", default=[], help="Python files or modules that register the network")
    return parser


def _main(argv: list[str]) -> int:
    given = parser().parse_args(argv)
    check(given.top >= 1, "--top", given.top, "at least 1")
    paths, folder = _images(given.images)
    check(folder is not None or given.output is None, "--output", given.output, "given with a folder of images only")
    # Imported late: they bring torch, which --help and a refused option can do without.
    from sftn_fast.engine import resolve_device
    from sftn_fast.predict.classifier import Classifier
    from sftn_fast.utils import plugins
    from sftn_fast.utils.progress import LINE_INTERVAL, ProgressBar

    plugins.load(given.plugins)
    classifier = Classifier(given.student, resolve_device(given.device))
    if folder is not None:
        paths = _images_in(folder)
    rows = []
    label = f"classifying images in {folder}" if folder is not None else "classifying images"
    with ProgressBar(len(paths), start=None, label=label, unit="images", line_interval=LINE_INTERVAL) as progress:
        for done, found in enumerate(classifier.predict(paths, top=given.top), start=1):
            rows.append(found)
            progress.update(done)
    if folder is None:
        for path, found in zip(paths, rows, strict=True):
            classes = ", ".join(f"{each.name} {100 * each.probability:.1f} %" for each in found)
            print(escape(f"{path}: {classes}"))
        return 0
    text = _csv([path.relative_to(folder) for path in paths], rows)
    if given.output is None:
        print(text, end="")
        return 0
    from sftn_fast.utils.atomic import write_atomically

    write_atomically(Path(given.output).expanduser(), text)
    print(f"{len(rows):,} images: {given.output}", file=sys.stderr)
    return 0


def _images(names: Sequence[str]) -> tuple[list[Path], Path | None]:
    """Return the files, or the folder that is named instead."""
    paths = [Path(name).expanduser() for name in names]
    folders = [path for path in paths if path.is_dir()]
    if folders and len(paths) > 1:
        raise ConfigError(f"IMAGE must be image files or one folder, got the folder {folders[0]} and others")
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"IMAGE {missing[0]} does not exist")
    return (paths, None) if not folders else ([], folders[0])


def _images_in(folder: Path) -> list[Path]:
    from sftn_fast.data.folders import image_files

    paths = image_files(folder)
    check(bool(paths), "IMAGE", str(folder), "a folder with images")
    return paths


def _csv(paths: Iterable[Path], rows: Sequence[Sequence[tuple[str, float]]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    count = len(rows[0])
    writer.writerow(
        ["image", *(f"{what}{number}" for number in range(1, count + 1) for what in ("class", "probability"))]
    )
    for path, found in zip(paths, rows, strict=True):
        writer.writerow([escape(path), *(value for name, p in found for value in (name, f"{p:.6f}"))])
    return text.getvalue()
