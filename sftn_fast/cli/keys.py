"""Configuration keys: the dataclasses of a configuration as a flat table, and values converted to the table's types."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType
from typing import Any, TypeVar
from unicodedata import category

from sftn_fast.config import ConfigError
from sftn_fast.utils import safe_yaml
from sftn_fast.utils.similar_names import did_you_mean, nearest
from sftn_fast.validation import (
    HasCommas,
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


def is_list(key: Key) -> bool:
    """Return whether the value may be a list."""
    return element_of(key) is not None


def element_of(key: Key) -> Any:
    """Return the type of a list's elements, without its limits; None if the value can't be a list."""
    lists = [kind for kind in key.alternatives if typing.get_origin(kind) is tuple]
    return unwrap(typing.get_args(lists[0])[0])[0] if lists else None


def of_text(key: Key, text: str) -> Any:
    """Convert ``text`` from the command line to a value of ``key``.

    Raises:
        ConfigError: With one line.
    """
    if is_list(key):
        return of_texts(key, [text])
    if str in key.alternatives:
        value: Any = None if text == "null" and NoneType in key.alternatives else text
    else:
        try:
            value = safe_yaml.load(text, key.name, lines=False)
        except safe_yaml.NotYamlError:
            value = text  # fits no type here, since text is none of them
    return of_value(key, value, shown=text)


def of_texts(key: Key, texts: Sequence[str]) -> Any:
    """Convert the arguments after an option to a value of ``key``, which may be a list.

    A list needs no brackets: ``0 1 2``, ``0,1,2`` and ``[0,1,2]`` are the same. Only elements with commas of their own
    are separated by spaces alone; see :class:`~sftn_fast.validation.HasCommas`.

    Raises:
        ConfigError: With one line.
    """
    text = " ".join(texts)
    value = _of_yaml(key, text)
    if isinstance(value, list) or (len(texts) == 1 and _fits(key, value)):
        return of_value(key, value, shown=text)
    parts = list(texts)
    if not any(isinstance(mark, HasCommas) for mark in unwrap(key.type)[1]):
        parts = [part.strip() for text in texts for part in text.removesuffix(",").split(",")]
    is_text = element_of(key) is str
    if not is_text:
        parts = [word for part in parts for word in part.split() or [part]]
    return of_value(key, [part if is_text else _of_yaml(key, part) for part in parts], shown=text)


def _of_yaml(key: Key, text: str) -> Any:
    """Return ``text`` read as YAML, or itself if it is none."""
    try:
        return safe_yaml.load(text, key.name, lines=False)
    except safe_yaml.NotYamlError:
        return text


def _fits(key: Key, value: Any) -> bool:
    with suppress(TypeError):
        _fit(key.type, value)
        return True
    return False


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
        allowed = in_words(key.type, typed=shown is not None)
        raise ConfigError(f"{key.name} must be {allowed}, got {got}{_meant(key, value)}") from None


def shorten(value: Any) -> str:
    """Return ``value`` as an error message shows it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _meant(key: Key, value: Any) -> str:
    """Return a hint on the choices that a wrong ``value``, or a wrong part of it, may stand for."""
    kinds = [part for kind in key.alternatives for part in (kind, *typing.get_args(kind)[:1])]
    choices = [choice for kind in kinds for choice in choices_of(kind)]
    texts = [text for text in (value if isinstance(value, list | dict) else [value]) if isinstance(text, str)]
    return did_you_mean(near for text in texts if text not in choices for near in nearest(text, choices))


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


def in_words(kind: Any, *, typed: bool = False) -> str:
    """Return the values that the type ``kind`` allows, as an error message names them.

    Args:
        kind: Type of a key.
        typed: Show how a list is written on the command line, not how in a recipe.
    """
    members = [unwrap(member)[0] for member in members_of(kind)]
    choices = [choice for member in members for choice in choices_of(member)]
    others = [_in_words(member, typed=typed) for member in members if not choices_of(member)]
    if not others:
        return in_choices(choices)
    return join_words([*choices, *others]) if others == ["null"] else " or ".join([*choices, *others])


def _in_words(kind: Any, *, typed: bool) -> str:
    """Return how a message names a type other than a choice or a union."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        choices = choices_of(arguments[0])
        return "keys and values, as in {a: 1}" + (f", with keys of {', '.join(choices)}" if choices else "")
    if origin is tuple:
        choices, element = choices_of(arguments[0]), unwrap(arguments[0])[0]
        if element is int:
            return f"a list of whole numbers, as in {'0 1 2' if typed else '[0,1,2]'}"
        if element is float:
            return f"a list of numbers, as in {'1 2.5' if typed else '[1,2.5]'}"
        return f"a list, as in {'a b' if typed else '[a,b]'}" + (f", of {', '.join(choices)}" if choices else "")
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
        if choices_of(arguments[0]):
            return f"list of {element}"
        noun = next((noun for noun in NAMES.values() if element.startswith(noun)), element.partition(" ")[0])
        return f"list of {noun}s{element.removeprefix(noun)}"
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
