"""The command ``python -m sftn_fast.export STUDENT --format FORMAT``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sftn_fast.utils import program
from sftn_fast.utils.paths import expand_user, output_file, refuse_input, require_named
from sftn_fast.utils.text import escape

DESCRIPTION = """\
Write an exported network as a file for deployment. The file takes pixels [N, C, H, W] from 0 to 1, of any batch size,
normalises them itself and returns logits; a state_dict holds the tensors alone, under the network's original names. The
file is read back, and the largest difference of its logits is printed."""

FORMATS = ("onnx", "onnx-legacy", "pt2", "torchscript", "state_dict")
"""Names of the formats; :data:`sftn_fast.export.formats.WRITERS` has what writes them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code. 2: the network can't be read or written in this format."""
    return program.run(_main, argv)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=program.name_of("export"), description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("student", metavar="STUDENT", help="folder of an exported network, such as runs/demo/student")
    parser.add_argument("--format", required=True, choices=FORMATS, help="format of the file")
    parser.add_argument("--output", metavar="FILE", help="file to write (default: deployed.SUFFIX in STUDENT)")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists; the default always is")
    parser.add_argument("--plugins", nargs="*", default=[], help="Python files or modules that register the network")
    return parser


def _main(argv: list[str]) -> int:
    given = parser().parse_args(argv)
    require_named({"STUDENT": given.student, "--plugins": given.plugins})
    # Imported late: they bring torch, which --help and a refused option can do without.
    from sftn_fast import models
    from sftn_fast.export.deployed import Deployed
    from sftn_fast.export.formats import WRITERS, write
    from sftn_fast.predict.classifier import load
    from sftn_fast.utils import derived_files, plugins

    if given.output is not None:
        file = output_file(given.output, overwrite=given.overwrite)
        models.check_not_of_export(file, "--output")
        refuse_input(file, "--output", map(expand_user, given.plugins))
    plugins.load(given.plugins)
    student = load(given.student)
    if given.output is None:
        file = output_file(str(expand_user(given.student) / f"deployed{WRITERS[given.format].suffix}"))
    deployed = Deployed(student.network, student.preprocessing).eval()
    difference = write(given.format, deployed, student.preprocessing.crop, file)
    derived_files.record(expand_user(given.student), file, student.sha256, deployed=True)
    if difference is None:
        print(f"{escape(file)}: not compared with the network, because onnxruntime is not installed")
    else:
        scale, largest = difference.scale, difference.largest
        print(f"{escape(file)}: largest difference of a logit {largest:.2g}, of logits up to {scale:.2g}")
    return 0
