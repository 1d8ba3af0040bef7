"""Command line of a program: one option for each configuration key, and some of the program's own."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from sftn_fast.cli.keys import Key, element_of, groups_of, is_list, keys_of, name_type, of_text, of_texts
from sftn_fast.cli.messages import refuse_argument
from sftn_fast.config import ConfigError
from sftn_fast.utils import program, safe_yaml
from sftn_fast.utils.text import one_line

HELP = ("-h", "--help")


@dataclass(frozen=True)
class Option:
    """Option that is not a configuration key."""

    names: tuple[str, ...]
    help: str
    flag: bool = False
    """The option takes no value."""
    many: bool = False
    """The option may be given several times; its value is a list."""

    @property
    def name(self) -> str:
        """Name under which the value is stored."""
        return self.names[-1].lstrip("-")


class CommandLine:
    """Parser of a program's options, with a dataclass as its configuration.

    Args:
        cls: Dataclass with the keys: its fields, and those of the dataclasses in it.
        usage: Usage line, from the name of the program on.
        description: Text above the options in ``--help``.
        options: Options that are not keys.
        common: Names of the options that ``--help`` shows first.
        positional: Key that is given without its name.
    """

    def __init__(
        self,
        cls: type,
        *,
        usage: str,
        description: str,
        options: Sequence[Option] = (),
        common: Sequence[str] = (),
        positional: str | None = None,
    ) -> None:
        self.cls, self._usage, self.description = cls, usage, description
        self.options, self.common, self.positional = options, common, positional
        self.keys = keys_of(cls)

    @property
    def usage(self) -> str:
        """Usage line, as the user called the program."""
        return program.name_of(self._usage)

    @cached_property
    def documents(self) -> dict[str, str]:
        """Description of each key."""
        return _field_documents(self.cls)

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Return the values that ``argv`` gives, by key. An entry of a dict has the name ``KEY.ENTRY``.

        Raises:
            ConfigError: With one line for any wrong argument.
            SystemExit: After printing the help, if ``argv`` asks for it.
        """
        if any(part in HELP for part in argv):
            print(self.help(), end="")
            raise SystemExit(0)
        given, others = self._take_lists(argv)
        self._parser.usage = self.usage
        texts, others = self._parser.parse_known_args(others)
        for name, text in vars(texts).items():
            given[name] = of_text(self.keys[name], text) if name in self.keys else text
        while others:
            name, has_value, text = others.pop(0).partition("=")
            key = self.keys.get(name.removeprefix("--").rpartition(".")[0])
            if name.removeprefix("--") == self.positional:
                raise ConfigError(f"{self.positional} is given without {name}; usage: {self.usage}")
            if key is None or not key.is_dict:
                raise ConfigError(refuse_argument(name + has_value + text, self._names(), usage=self.usage))
            if not has_value and not others:
                raise ConfigError(f"option {name} needs a value")
            entry = name.rpartition(".")[2]
            value = text if has_value else others.pop(0)
            if "," in value and not value.startswith(("[", "{", "'", '"')):
                value = f"[{value}]"  # a list needs no brackets here either
            entries = of_text(key, f"{{{entry}: {value}}}")
            given |= {f"{key.name}.{each}": value for each, value in entries.items()}
        return given

    def _take_lists(self, argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Return the values of the options that take a list, and the other arguments."""
        given: dict[str, Any] = {}
        others, rest = list[str](), list(argv)
        while rest:
            name, has_value, text = (part := rest.pop(0)).partition("=")
            key = self.keys.get(name[2:]) if name.startswith("--") else None
            if key is None or not is_list(key):
                others.append(part)
                continue
            texts = [text] if has_value else []
            while rest and self._continues(key, texts, rest[0]):
                texts.append(rest.pop(0))
            if not texts:
                raise ConfigError(f"option {name} needs a value")
            given[key.name] = of_texts(key, texts)
        return given, others

    def _continues(self, key: Key, texts: Sequence[str], part: str) -> bool:
        """Return whether ``part`` is one more argument of a list that has ``texts`` so far."""
        if re.match(r"-(?!\d)", part):
            return False
        if texts and texts[0].startswith("["):
            return not texts[-1].endswith("]")
        # A text may also be the argument without a name.
        return not texts or self.positional is None or (element_of(key) is int and part.isdecimal())

    def merge(self, values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``values``, overridden by the values that :meth:`parse` returned."""
        merged = {**values}
        for name, value in given.items():
            key, _, entry = name.rpartition(".")
            if name not in self.keys and key in self.keys:
                merged[key] = {**merged.get(key, {}), entry: value}
            else:
                merged[name] = value
        return merged

    @cached_property
    def _parser(self) -> _Parser:
        parser = _Parser(usage=self.usage, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for name in self.keys:
            if name == self.positional:
                parser.add_argument(name, metavar=name.upper())
            else:
                parser.add_argument(f"--{name}", dest=name)
        for option in self.options:
            action = "store_true" if option.flag else "append" if option.many else "store"
            parser.add_argument(*option.names, dest=option.name, action=action)
        return parser

    def _names(self) -> list[str]:
        keys = [name for name in self.keys if name != self.positional]
        return [*keys, *(name.lstrip("-") for option in self.options for name in option.names if name[:2] == "--")]

    def help(self) -> str:
        """Return the text of ``--help``: the common options, then all others in their groups."""
        documents, own = self.documents, {option.name: option for option in self.options}
        lines = [f"usage: {self.usage}", "", *_wrap(self.description.strip()), "", "common options:"]
        lines += _entry("-h, --help", "Show this help and exit.")
        for name in self.common:
            lines += _option_entry(own[name]) if name in own else _key_entry(self.keys[name], documents)
        for group, cls in groups_of(self.cls).items():
            title = f"{group}: {_first_paragraph(cls)}" if group else "other options:"
            lines += ["", *_wrap(title)]
            rest = [key for key in self.keys.values() if key.group == group and key.name not in self.common]
            lines += [line for key in rest if key.name != self.positional for line in _key_entry(key, documents)]
            if not group:
                more = [option for option in self.options if option.name not in self.common]
                lines += [line for option in more for line in _option_entry(option)]
        return "\n".join(lines) + "\n"


class _Parser(argparse.ArgumentParser):
    """Python's own parser, with its errors raised as :class:`ConfigError`."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"argument (\S+): expected one argument", message):
            raise ConfigError(f"option {found[1].rpartition('/')[2]} needs a value")
        if found := re.search(r"arguments are required: (.+)", message):
            raise ConfigError(f"{found[1].lower()} is missing; usage: {self.usage}")
        raise ConfigError(one_line(message))


def _key_entry(key: Key, documents: dict[str, str]) -> list[str]:
    value = key.name.rpartition(".")[2].upper()
    about = f"{documents[key.name]} ({name_type(key.type)}; default: {safe_yaml.inline(key.default)})"
    return _entry(f"--{key.name} {value}", about)


def _option_entry(option: Option) -> list[str]:
    value = "" if option.flag else f" {option.name.upper()}"
    return _entry(", ".join(f"{name}{value}" for name in option.names), option.help)


def _entry(head: str, text: str) -> list[str]:
    return [f"  {head}", *_wrap(text, indent=" " * 8)]


def first_sentence(text: str) -> str:
    """Return the first sentence of a description, without its line breaks and its full stop."""
    return re.split(r"[.;:](?:\s|$)", one_line(text), maxsplit=1)[0]


def _wrap(text: str, indent: str = "") -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 120) - 2)
    return textwrap.wrap(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent)


def _first_paragraph(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]


def _field_documents(cls: type) -> dict[str, str]:
    """Return the docstring of each field of ``cls`` and of the dataclasses in it, by key."""
    documents = {}
    for group, each in groups_of(cls).items():
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                name = f"{group}.{field.target.id}" if group else field.target.id
                documents[name] = str(ast.literal_eval(text.value))
    return documents
