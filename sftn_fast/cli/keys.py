"""The keys of a configuration: its dataclasses as a flat table, and values as the table's types have them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar
from unicodedata import category

from sftn_fast.config import ConfigError
from sftn_fast.utils import safe_yaml

T = TypeVar("T")

LARGEST = 2**63 - 1
"""Of whole numbers."""


@dataclass(frozen=True)
class Key:
    """One value of a configuration."""

    name: str
    """With the groups that it lies in, as ``optim.lr``."""
    type: Any
    default: Any

    @property
    def group(self) -> str:
        """The groups that it lies in; empty for a key of the whole."""
        return self.name.rpartition(".")[0]

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The types that its value may have."""
        return typing.get_args(self.type) if _is_union(self.type) else (self.type,)


def keys_of(cls: type, prefix: str = "") -> dict[str, Key]:
    """Return all keys of the dataclass ``cls`` and of those inside it, by their names."""
    return {key.name: key for key in _keys(cls, prefix)}


def groups_of(cls: type) -> dict[str, type]:
    """Return the dataclasses inside ``cls`` by the keys that hold them, and ``cls`` itself by the empty one."""
    hints = typing.get_type_hints(cls)
    inside = {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    return {"": cls, **{name: hint for name, hint in inside.items() if dataclasses.is_dataclass(hint)}}  # type: ignore[misc]


def build(cls: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Return ``cls`` with ``values``, which are by the names of :func:`keys_of`; what is not there has its default.

    Raises :class:`ConfigError` as the dataclasses do.
    """
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = build(hints[field.name], values, f"{name}.")  # type: ignore[arg-type]
        elif name in values:
            arguments[field.name] = values[name]
    return cls(**arguments)


def of_text(key: Key, text: str) -> Any:
    """Return the value that ``text`` of the command line is for ``key``.

    Raises :class:`ConfigError` with one line.
    """
    if str in key.alternatives:
        value: Any = None if text == "null" and NoneType in key.alternatives else text
    else:
        try:
            value = safe_yaml.load(text, key.name)
        except safe_yaml.NotYamlError:
            value = text  # which is none of the types, since text is none
    return of_value(key, value, shown=text)


def of_value(key: Key, value: Any, *, shown: Any = None) -> Any:
    """Return ``value``, as YAML has it, as ``key`` has it: a list as a tuple, a whole number as a float.

    Args:
        key: The key.
        value: Null, text, truth value, number, list or dict.
        shown: What a refusal shows, if not the value.

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
    """Return ``value`` as a refusal shows it."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _fit(kind: Any, value: Any) -> Any:
    """Return ``value`` as the type ``kind``; raises :class:`TypeError` where it is none of that."""
    if _is_union(kind):
        for member in typing.get_args(kind):
            with suppress(TypeError):
                return _fit(member, value)
        raise TypeError
    if _is_literal(kind):
        if isinstance(value, str) and value in typing.get_args(kind):
            return value
        raise TypeError
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
    """Yield what is wrong with each part of ``value``."""
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


NAMES = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
IN_WORDS = {
    int: "a whole number (int)",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list, as in [a,b]",
    dict: "keys and values, as in {a: 1}",
    NoneType: "null",
}


def in_words(kind: Any) -> str:
    """Return what a value of the type ``kind`` is, as a refusal says it."""
    members = typing.get_args(kind) if _is_union(kind) else (kind,)
    literals = [str(text) for member in members if _is_literal(member) for text in typing.get_args(member)]
    others = [IN_WORDS[typing.get_origin(member) or member] for member in members if not _is_literal(member)]
    return " or ".join([*literals, *others])


def name_type(kind: Any) -> str:
    """Return the type ``kind`` in a word or two, as a list of options has it."""
    members = typing.get_args(kind) if _is_union(kind) else (kind,)
    names = []
    for member in members:
        if _is_literal(member):
            names += [str(text) for text in typing.get_args(member)]
        elif typing.get_origin(member) is tuple:
            names.append(f"list of {NAMES[typing.get_args(member)[0]]}s")
        elif typing.get_origin(member) is dict:
            names.append("{name: " + NAMES[typing.get_args(member)[1]] + "}")
        else:
            names.append(NAMES[member])
    return " or ".join(names)


def _keys(cls: type, prefix: str) -> Iterator[Key]:
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            yield Key(f"{prefix}{field.name}", kind, default)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, UnionType)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal
