"""What jsonargparse refuses, in one line of our words: the key, what is allowed, what was given."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

TYPES = {
    "int": "a whole number (int)",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "tuple": "a list, as in [a,b]",
    "dict": "keys and values, as in {a: 1}",
    "NoneType": "null",
}
WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)": (?P<types>.*?)(?:Given value type: .*?)?(?:Got|Given) value: (?P<value>.*)'
)
UNKNOWN = re.compile(r"[Uu]nrecognized arguments: (?P<argument>\S+)")


def explain(message: str, parser: ArgumentParser) -> str:
    """``message`` of jsonargparse, reworded where it is one of the two that beginners meet."""
    line = " ".join(message.split())
    if (wrong := WRONG_TYPE.match(line)) and (types := _types(wrong["types"])):
        return f"{wrong['key']} must be {' or '.join(types)}, got {wrong['value']!r}"
    if unknown := UNKNOWN.search(line):
        return _unknown(unknown["argument"], parser)
    return one_line(line)


def one_line(message: str) -> str:
    """``message`` without its line breaks."""
    return " ".join(message.replace("Parser key", "option").split())


def _types(text: str) -> list[str]:
    """The types that ``text`` names, in words; nothing if there is one among them that has none."""
    names = dict.fromkeys(re.findall(r"<class '(\w+)'>", text))
    words = [word for choices in re.findall(r"Literal\[(.+?)\]", text) for word in re.findall(r"'(\w+)'", choices)]
    return [*dict.fromkeys(words), *(TYPES[name] for name in names)] if names.keys() <= TYPES.keys() else []


def _unknown(argument: str, parser: ArgumentParser) -> str:
    option = argument.partition("=")[0]
    if not option.startswith("-"):
        return f"unknown argument {argument!r}; a recipe stands behind --config, every other value behind its option"
    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    name = option.lstrip("-")
    same = [each for each in known if each.rpartition(".")[2] == name]  # --lr for --optim.lr
    near = [*same, *difflib.get_close_matches(option, known, n=3, cutoff=0.75)]
    hint = f"; did you mean {' or '.join(dict.fromkeys(near))}?" if near else "; --help lists all"
    return f"unknown option {option}{hint}"
