"""The command ``sftn completion SHELL``: print the script by which a shell completes ``sftn``.

The script holds all verbs, options and choices, so the shell starts no Python to complete a word. shtab writes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sftn_fast.utils import program

SHELLS = ("bash", "zsh")
DESCRIPTION = """\
Print a script that completes the verbs, options and choices of sftn, and paths. For bash, put this line into ~/.bashrc:
eval "$(sftn completion bash)". For zsh, put this line into ~/.zshrc, after compinit: eval "$(sftn completion zsh)"."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; return the exit code. 2: there is no such shell."""
    return program.run(_main, argv, output_matters=True)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog=program.name_of("completion"), description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" or ".join(SHELLS))
    return parser


def _main(argv: list[str]) -> int:
    shell = parser().parse_args(argv).shell
    # Imported late: --help and a refused shell can do without.
    from sftn_fast.completion.scripts import script_for
    from sftn_fast.completion.verbs import list_options, sftn_parser

    print(script_for(shell, sftn_parser(parser()), list_options()))
    return 0
