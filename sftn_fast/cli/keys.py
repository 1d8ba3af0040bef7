"""Configuration keys: the dataclasses of a configuration as a flat table, and values converted to the table's types."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar
from unicodedata import category

from sftn_fast.config import ConfigError
from sftn_fast.utils import safe_yaml
from sftn_fast.validation import (
    Neutral,
    Rule,
    choices_of,
    field_types,
    in_choices,
    join_words,
    members_of,
    unwrap,
)

T = TypeVar("T")

LARGEST = 2**63 - 1
"""Largest whole number."""


@dataclass(frozen=True)
class Key:
    """One value of a configuration."""

    name: str
    """Name with its group, such as ``optim.lr``."""
    type: Any
    """Type with its ``Annotated`` limits."""
    default: Any

    @property
    def group(self) -> str:
        """Group of the key; empty for a key of the whole configuration."""
        return self.name.rpartition(".")[0]

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """Types that the value may have."""
        return tuple(unwrap(member)[0] for member in members_of(self.type))

    @property
    def is_dict(self) -> bool:
        """The value has entries, each of which is an option of its own."""
        return typing.get_origin(self.alternatives[0]) is dict


def keys_of(cls: type, prefix: str = "") -> dict[str, Key]:
    """Return all keys of the dataclass ``cls`` and of the dataclasses in it, by name."""
    return {key.name: key for key in _keys(cls, prefix)}


def neutral_keys(cls: type) -> dict[str, str]:
    """Return the keys of ``cls`` that do not change what is trained, with the reason."""
    marks = ((key.name, mark) for key in keys_of(cls).values() for mark in unwrap(key.type)[1])
    return {name: mark.reason for name, mark in marks if isinstance(mark, Neutral)}


def groups_of(cls: type) -> dict[str, type]:
    """Return the dataclasses in ``cls`` by the names of their groups, and ``cls`` itself by the empty name."""
    return {"": cls, **{name: kind for name, kind in field_types(cls).items() if dataclasses.is_dataclass(kind)}}  # type: ignore[misc]


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return ``cls`` with ``values``, given by the names of :func:`keys_of`. Missing keys have their defaults.

    Raises:
        ConfigError: Raised by the dataclasses.
    """
    types = field_types(cls)  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(types[field.name]):
            arguments[field.name] = build(types[field.name], values, f"{name}.")  # type: ignore[arg-type]
        elif name in values:
            arguments[field.name] = values[name]
    return cls(**arguments)


def is_series(key: Key) -> bool:
    """Return whether ``key`` is a list of whole numbers or choices, whose elements hold no comma."""
    tuples = [unwrap(member)[0] for member in members_of(key.type)]
    elements = [typing.get_args(kind)[0] for kind in tuples if typing.get_origin(kind) is tuple]
    return any(element is int or choices_of(element) for element in elements)


def of_text(key: Key, text: str) -> Any:
    """Convert ``text`` from the command line to a value of ``key``.

    A list of numbers or choices needs no brackets: ``0,1,2`` is ``[0,1,2]``, and ``0`` is ``[0]``.

    Raises:
        ConfigError: With one line.
    """
    if str in key.alternatives:
        value: Any = None if text == "null" and NoneType in key.alternatives else text
    else:
        try:
            value = safe_yaml.load(text, key.name)
        except safe_yaml.NotYamlError:
            value = text  # fits no type here, since text is none of them
        if is_series(key) and isinstance(value, int | str) and not isinstance(value, bool):
            value = [safe_yaml.load(part, key.name) for part in text.split(",")]
    return of_value(key, value, shown=text)


def of_value(key: Key, value: Any, *, shown: Any = None) -> Any:
    """Convert a ``value`` read from YAML to the type of ``key``: a list to a tuple, a whole number to a float.

    Args:
        key: The key.
        value: Null, text, bool, number, list or dict.
        shown: Value for the error message, if not ``value``.

    Raises:
        ConfigError: With one line.
    """
    if fault := next(_faults(value), None):
        raise ConfigError(f"{key.name} {fault}")
    try:
        return _fit(key.type, value)
    except TypeError:
        got = shorten(value if shown is None else shown)
        raise ConfigError(f"{key.name} must be {in_words(key.type)}, got {got}") from None


def shorten(value: Any) -> str:
    """Return ``value`` as an error message shows it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fit(kind: Any, value: Any) -> Any:
    """Return ``value`` as the type ``kind``, or raise :class:`TypeError`."""
    kind, _ = unwrap(kind)
    if len(members := members_of(kind)) > 1:
        for member in members:
            with suppress(TypeError):
                return _fit(member, value)
        raise TypeError
    if isinstance(value, str) and value in choices_of(kind):
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        return tuple(_fit(typing.get_args(kind)[0], each) for each in value)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        names, values = typing.get_args(kind)
        return {_fit(names, name): _fit(values, each) for name, each in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind in (NoneType, bool, int, float, str) and type(value) is kind:  # by type, since true is an int as well
        return value
    raise TypeError


def _faults(value: Any) -> Iterator[str]:
    """Yield an error message for each invalid part of ``value``."""
    if isinstance(value, dict):
        for each in (*value.keys(), *value.values()):
            yield from _faults(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _faults(each)
    elif isinstance(value, str):
        # A control character in a name would reach the terminal, and half of a surrogate pair no file at all.
        wrong = next((letter for letter in value if category(letter) in ("Cc", "Cs", "Zl", "Zp")), None)
        if wrong is not None:
            yield f"must be printable text, got {shorten(value)}, with {_describe_letter(wrong)} in it"
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield "must fit into 64 bits, got a larger number"


def _describe_letter(letter: str) -> str:
    if 0xDC80 <= ord(letter) <= 0xDCFF:  # as os.fsdecode has what is no text in this locale
        return f"the byte 0x{ord(letter) - 0xDC00:02x}, which is no text in this locale"
    return f"the character U+{ord(letter):04X}"


NAMES = {int: "whole number", float: "number", str: "text"}
CHOICES: dict[Any, tuple[str, ...]] = {bool: ("true", "false"), NoneType: ("null",)}
WORDS = {int: "a whole number (int)", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def in_words(kind: Any) -> str:
    """Return the values that the type ``kind`` allows, as an error message names them."""
    members = [unwrap(member)[0] for member in members_of(kind)]
    choices = [choice for member in members for choice in choices_of(member)]
    others = [_in_words(member) for member in members if not choices_of(member)]
    if not others:
        return in_choices(choices)
    return join_words([*choices, *others]) if others == ["null"] else " or ".join([*choices, *others])


def _in_words(kind: Any) -> str:
    """Return how a message names a type other than a choice or a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        choices = choices_of(arguments[0])
        return "keys and values, as in {a: 1}" + (f", with keys of {', '.join(choices)}" if choices else "")
    if origin is tuple:
        choices = choices_of(arguments[0])
        return "a list, as in [a,b]" + (f", of {', '.join(choices)}" if choices else "")
    return WORDS[kind]


def name_type(kind: Any) -> str:
    """Return the values that the type ``kind`` allows, as ``--help`` lists them.

    Choices are in braces if there is nothing else: ``{auto, true, false}``.
    """
    choices: list[str] = []
    others: list[str] = []
    for member in members_of(kind):
        plain, annotations = unwrap(member)
        if named := choices_of(plain) or CHOICES.get(plain, ()):
            choices += named
        else:
            others.append(_name(plain, [each for each in annotations if isinstance(each, Rule)]))
    return join_words([*others, *choices]) if others else f"{{{', '.join(choices)}}}"


def _name(kind: Any, rules: list[Rule]) -> str:
    """Return how ``--help`` names a type other than a choice or a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        names = choices_of(arguments[0])
        return f"{{{'|'.join(names) if names else 'name'}: {name_type(arguments[1])}}}"
    if origin is tuple and not rules:
        element = name_type(arguments[0])
        return f"list of {element}" + "s" * (not choices_of(arguments[0]))
    limits = " ".join(str(rule).removeprefix("a ") for rule in rules)
    if origin is tuple:
        return f"list of {limits}"
    return limits if kind is str and rules else f"{NAMES[kind]} {limits}".strip()


def _keys(cls: type, prefix: str) -> Iterator[Key]:
    types = field_types(cls)
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            yield Key(f"{prefix}{field.name}", kind, default)
