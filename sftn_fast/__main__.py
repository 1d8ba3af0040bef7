"""``sftn VERB ...`` and ``python -m sftn_fast VERB ...``: one command for all programs of the package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from sftn_fast.config import ConfigError
from sftn_fast.utils import program

VERBS = {
    "train": ("sftn_fast.train", "train teachers and students by a recipe"),
    "report": ("sftn_fast.report", "write and print the report of a run"),
    "compare": ("sftn_fast.compare", "compare several runs"),
    "predict": ("sftn_fast.predict", "classify images by an exported network"),
    "export": ("sftn_fast.export", "write a network as ONNX, PT2, TorchScript or state dict"),
    "transfer": ("sftn_fast.transfer", "train a linear classifier on a network's features"),
    "verify": ("sftn_fast.verify", "find image files that can't be decoded"),
    "completion": ("sftn_fast.completion", "print the script by which bash or zsh completes sftn"),
    "info": ("sftn_fast.info", "print versions, kernels and devices"),
}
"""Module and purpose of each verb. A module is also a program of its own: ``python -m sftn_fast.VERB``."""


def usage() -> str:
    """Return the text of ``--help``."""
    lines = "\n".join(f"  {verb:<12}{purpose}" for verb, (_, purpose) in VERBS.items())
    more = "sftn VERB --help lists the options of a verb. sftn --version prints the version."
    return f"usage: sftn VERB ...\n\n{lines}\n\n{more}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` begins with; return its exit code. 2: there is no such verb."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else ""
    if verb in VERBS:
        program.exit_on_interrupt()  # until the program itself has been imported, and takes over
        with program.called_by("python -m sftn_fast " if Path(sys.argv[0]).name == "__main__.py" else "sftn "):
            return int(import_module(VERBS[verb][0]).main(arguments[1:]))
    return program.run(_without_verb, arguments, output_matters=True)


def _without_verb(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    from sftn_fast.cli.messages import suggest

    raise ConfigError(f"{arguments[0]!r} is not a verb of sftn{suggest(arguments[0], VERBS)}; use {', '.join(VERBS)}")


if __name__ == "__main__":
    sys.exit(main())
