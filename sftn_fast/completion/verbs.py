"""The whole command line of ``sftn`` as one parser of argparse, from which shtab makes completions.

The verbs that are configured by a dataclass have parsers of their own (:mod:`sftn_fast.cli.options`), which leave
values to the dataclass. Here, each of their options has its choices.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

import shtab

from sftn_fast.__main__ import VERBS
from sftn_fast.cli import recipe_names
from sftn_fast.cli.keys import Key, is_list
from sftn_fast.cli.network_names import NETWORKS
from sftn_fast.cli.options import CommandLine, first_sentence
from sftn_fast.cli.parser import train_line, transfer_line
from sftn_fast.cli.verify_options import parser as verify_parser
from sftn_fast.compare.command import parser as compare_parser
from sftn_fast.distillers import spec
from sftn_fast.export.command import parser as export_parser
from sftn_fast.predict.command import parser as predict_parser
from sftn_fast.report.command import parser as report_parser
from sftn_fast.validation import PathText, choices_of, members_of, unwrap

PATHS = {"student", "images", "output", "plugins", "folders", "runs", "root", "network"}
"""Arguments of the verbs with parsers of argparse that are paths."""


def sftn_parser(completion: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return the parser of ``sftn``; ``completion`` is that of the verb ``completion`` itself."""
    root = argparse.ArgumentParser(prog="sftn", allow_abbrev=False)
    root.add_argument("-V", "--version", action="store_true", help="print the version")
    verbs = root.add_subparsers()
    known = {
        "report": report_parser(),
        "compare": compare_parser(),
        "predict": predict_parser(),
        "export": export_parser(),
        "verify": verify_parser(),
        "completion": completion,
    }
    lines = {"train": train_line(), "transfer": transfer_line()}
    for verb, (_, purpose) in VERBS.items():
        parents = [_mark_paths(known[verb])] if verb in known else []
        added = verbs.add_parser(verb, help=purpose, parents=parents, add_help=not parents)
        if verb in lines:
            _add_options(added, lines[verb])
    return root


def list_options() -> list[str]:
    """Return the options of ``sftn train`` that take several values, separated by spaces."""
    return [f"--{name}" for name, key in train_line().keys.items() if is_list(key)]


def _mark_paths(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    for action in parser._actions:
        if action.dest in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _add_options(parser: argparse.ArgumentParser, line: CommandLine) -> None:
    for name, key in line.keys.items():
        about = _plain(first_sentence(line.documents[name]))
        action = parser.add_argument(name if name == line.positional else f"--{name}", help=about)
        if is_list(key) and line.positional is None:  # behind other texts, the next one may be the positional one
            action.nargs = "*"
        choices = _choices(key)
        if _is_path(key):
            action.complete = _words_or_files(name, choices) if choices else shtab.FILE  # type: ignore[attr-defined]
        else:
            action.choices = choices
    for option in line.options:
        action = parser.add_argument(
            *option.names, help=_plain(first_sentence(option.help)), action="store_true" if option.flag else "store"
        )
        if option.name == "config":
            action.complete = _words_or_files("config", recipe_names(), "*.yaml")  # type: ignore[attr-defined]
        elif option.name == "method":
            action.choices = spec.known()


def _choices(key: Key) -> Sequence[str] | None:
    """Return the values that complete an option; None if it takes any number or text."""
    if key.name in ("teacher", "student", "collaborate.networks"):
        return NETWORKS
    if key.name in ("distill", "methods"):
        return spec.known()
    found = [(("true", "false") if unwrap(kind)[0] is bool else choices_of(kind)) for kind in _kinds(key)]
    return [text for texts in found for text in texts] or None


def _is_path(key: Key) -> bool:
    """Return whether the value may be a path."""
    marks = [mark for kind in (key.type, *_kinds(key)) for mark in unwrap(kind)[1]]
    return any(isinstance(mark, PathText) for mark in marks)


def _kinds(key: Key) -> Iterator[Any]:
    """Yield the types that the value may have; for a list, the type of its elements."""
    for member in members_of(key.type):
        kind = unwrap(member)[0]
        yield get_args(kind)[0] if get_origin(kind) is tuple else member


def _words_or_files(name: str, words: Sequence[str], pattern: str = "*") -> dict[str, Any]:
    """Return a completion of option ``name``, as shtab takes it: by ``words``, and by files that match ``pattern``."""
    function = f"_sftn_{name}"
    listed, quoted = shlex.quote(" ".join(words)), shlex.quote(pattern)
    bash = f"{function}() {{ compgen -W {listed} -- $1; compgen -f -X '!'{quoted} -- $1; compgen -d -- $1; }}"
    zsh = f"{{compadd -- {' '.join(map(shlex.quote, words))}; _files -g {quoted}}}"
    return {"bash": function, "zsh": zsh, "preamble": {"bash": bash}}


def _plain(text: str) -> str:
    """Return ``text`` without what argparse would read as a format."""
    return text.replace("%", "%%")
