"""Limits of a configuration's values, carried by the types of its fields, and the function that checks them.

Imports only the standard library.
"""

from __future__ import annotations

import math
import os
import sys
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from functools import cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

LONGEST_NAME = 255
"""Largest number of bytes in a file's name."""
LONGEST_PATH = 1000 if sys.platform == "darwin" else 3500
"""Largest number of bytes in a path. The system allows more, which a run needs for the files in its folder."""
MOST_WORKERS = 1024
"""Largest number of threads, or of processes side by side. More can exhaust what the system gives a user."""


class ConfigError(ValueError):
    """A configuration that can't run. The command line prints its one line and exits with code 2."""


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {allowed}, got {value!r}")


@dataclass(frozen=True)
class Bound:
    """Smallest and largest value of a number. A float must also be finite."""

    minimum: float = -math.inf
    maximum: float = math.inf
    exclusive: bool = False
    """Refuse the minimum itself."""
    below: float | None = None
    """Refuse this value and all larger ones."""

    def check(self, key: str, value: Any, alternatives: Sequence[str] = ()) -> None:
        """Raise :class:`ConfigError` for a number outside the limits."""
        large_enough = value > self.minimum if self.exclusive else value >= self.minimum
        small_enough = value <= self.maximum and (self.below is None or value < self.below)
        finite = "a finite number " if isinstance(value, float) else ""
        allowed = join_words([f"{finite}{self}".strip(), *alternatives])
        check(math.isfinite(value) and large_enough and small_enough, key, value, allowed)

    def __str__(self) -> str:
        if self.maximum < math.inf:
            return f"from {self.minimum:g} to {self.maximum:g}"
        if self.minimum == -math.inf and self.below is None:
            return ""
        least = f"{'greater than' if self.exclusive else 'at least'} {self.minimum:g}"
        return least if self.below is None else f"{least} and less than {self.below:g}"


@dataclass(frozen=True)
class Series:
    """Limits of a list of whole numbers: where it starts, and whether it increases or only has no number twice."""

    minimum: int
    unit: str
    increasing: bool = False
    may_be_empty: bool = False

    def check(self, key: str, value: Any, alternatives: Sequence[str] = ()) -> None:
        """Raise :class:`ConfigError` for a list that is not such a series."""
        numbers = list(value)
        ordered = sorted(set(numbers)) == (numbers if self.increasing else sorted(numbers))
        usable = ordered and (bool(numbers) or self.may_be_empty) and all(n >= self.minimum for n in numbers)
        check(usable, key, numbers, join_words([str(self), *alternatives]))

    def __str__(self) -> str:
        order = "increasing" if self.increasing else "distinct"
        return f"{order} {self.unit} from {self.minimum} on"


class PathText:
    """Limits of a text that names a file or folder, whether or not it exists."""

    def check(self, key: str, value: Any, alternatives: Sequence[str] = ()) -> None:
        """Raise :class:`ConfigError` for a text that no file can have as its path."""
        check(bool(value.strip()), key, value, join_words([str(self), *alternatives]))
        check_path(key, value)

    def __str__(self) -> str:
        return "a path"


class DeviceText:
    """Limits of a text that names a device."""

    def check(self, key: str, value: Any, alternatives: Sequence[str] = ()) -> None:
        """Raise :class:`ConfigError` for a text that is no device's name."""
        check(is_device(value), key, value, str(self))

    def __str__(self) -> str:
        return "auto, cpu, cuda or cuda:N"


@dataclass(frozen=True)
class Neutral:
    """Mark of a field that does not change what is trained.

    Neither the name of a run's default folder nor the comparison with a finished run takes such a field into account.
    docs/runs.md lists these fields for the user.
    """

    reason: str


@dataclass(frozen=True, init=False)
class ReadWith:
    """Mark of a field that is read only where another key has certain values; a group has it as its ``read_with``.

    A run names each value that its user gave although nothing reads it.

    Args:
        key: The other key, such as ``optim.schedule``; or a property of the configuration, such as ``data.mixes``.
        values: Values of that key with which the field is read; of a list, elements. Without any, all that are true.
        shown: Keys that explain the property to the user.
    """

    key: str
    values: tuple[Any, ...]
    shown: tuple[str, ...]

    def __init__(self, key: str, *values: Any, shown: Sequence[str] = ()) -> None:
        for name, value in {"key": key, "values": values, "shown": tuple(shown) or (key,)}.items():
            object.__setattr__(self, name, value)

    def holds(self, config: Any, entry: str) -> bool:
        """Return whether ``config`` reads the field, or its ``entry`` if the field is a dict."""
        try:
            value = look_up(config, self.key)
        except AttributeError:  # a program that has no such setting
            return True
        values = tuple(entry if each is ENTRY else each for each in self.values)
        found = value if isinstance(value, tuple) else (value,)
        return any(each in values for each in found) if values else bool(value)


ENTRY = object()
"""Stands for the name of an entry of a dict in :class:`ReadWith`."""


def look_up(config: Any, key: str) -> Any:
    """Return the value of ``key``, such as ``optim.lr``, in nested dataclasses."""
    return reduce(getattr, key.split("."), config)


class HasCommas:
    """Mark of a list whose elements may hold commas, which therefore don't separate them on the command line."""


Rule = Bound | Series | PathText | DeviceText

PositiveFloat = Annotated[float, Bound(0, exclusive=True)]
NonNegativeFloat = Annotated[float, Bound(0)]
PositiveInt = Annotated[int, Bound(1)]
NonNegativeInt = Annotated[int, Bound(0)]
FilePath = Annotated[str, PathText()]
Device = Annotated[str, DeviceText()]


def validate(config: Any, prefix: str = "") -> None:
    """Check each field of a dataclass against the limits in its type.

    Args:
        config: A dataclass. Fields that hold dataclasses are skipped: they have checked themselves.
        prefix: Text before a field's name in a message, such as ``optim.``.

    Raises:
        ConfigError: With one line that names field, value and what is allowed.
    """
    for name, kind in field_types(type(config)).items():  # type: ignore[arg-type]
        if not is_dataclass(kind):
            _check_value(f"{prefix}{name}", getattr(config, name), kind)


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, with their ``Annotated`` limits."""
    return typing.get_type_hints(cls, include_extras=True)


def unwrap(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a type without ``Annotated``, and what was annotated."""
    annotations = getattr(kind, "__metadata__", ())
    return (kind.__origin__, annotations) if annotations else (kind, ())


def members_of(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    plain, _ = unwrap(kind)
    return typing.get_args(plain) if typing.get_origin(plain) in (typing.Union, UnionType) else (kind,)


def choices_of(kind: Any) -> tuple[str, ...]:
    """Return the texts that a ``Literal`` allows; empty for another type."""
    kind, _ = unwrap(kind)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def join_words(words: Sequence[str]) -> str:
    """Join alternatives as in "a, b or c"."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def in_choices(choices: Sequence[str]) -> str:
    """Return how a message names ``choices``."""
    return join_words(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"


def _check_value(key: str, value: Any, kind: Any, alternatives: Sequence[str] = ()) -> None:
    kind, annotations = unwrap(kind)
    members = members_of(kind)
    if len(members) > 1:
        named = [choice for member in members for choice in choices_of(member)]
        named += ["null"] * (bool(named) and NoneType in members)
        for member in (each for each in members if _matches(value, each)):
            return _check_value(key, value, member, [] if choices_of(member) else named)
        check(not named, key, value, join_words(named))
    choices = choices_of(kind)
    check(not choices or value in choices, key, value, in_choices(choices))
    for part, part_kind in _parts(value, kind):
        _check_value(key, part, part_kind)
    for rule in annotations:
        if isinstance(rule, Rule):
            rule.check(key, value, alternatives)
    return None


def _matches(value: Any, kind: Any) -> bool:
    """Return whether ``value`` belongs to the member ``kind`` of a union."""
    kind, _ = unwrap(kind)
    if choices := choices_of(kind):
        return value in choices
    plain = typing.get_origin(kind) or kind
    return isinstance(value, {float: (int, float), tuple: (tuple, list)}.get(plain, plain))


def _parts(value: Any, kind: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the elements of a list, or the keys and values of a dict, with their types."""
    types = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        yield from ((each, types[0]) for each in value)
    elif typing.get_origin(kind) is dict:
        for name, each in value.items():
            yield name, types[0]
            yield each, types[1]


def check_path(key: str, path: str) -> None:
    """Raise :class:`ConfigError` for a ``path`` that no file can have. The disk is not read."""
    check(bool(path.strip()), key, path, "a path")
    try:
        encoded = os.fsencode(Path(path).expanduser())
        encoded.decode()
    except RuntimeError:
        raise ConfigError(f"{key} must be a path, got {path!r}, which names an unknown user") from None
    except UnicodeEncodeError:
        letters = f"in the letters of this locale ({sys.getfilesystemencoding()}; LC_ALL=C.UTF-8 has all)"
        raise ConfigError(f"{key} must be a path {letters}, got {path!a}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key} must be a path in UTF-8, got {path!a}") from None
    check("\0" not in path, key, path, "a path without the character U+0000")
    longest = max(map(len, encoded.split(os.sep.encode())))
    if longest > LONGEST_NAME or len(encoded) > LONGEST_PATH:
        shown = path if len(path) <= 40 else f"{path[:20]}...{path[-17:]}"
        raise ConfigError(
            f"{key} must be a path of at most {LONGEST_PATH} bytes with names of at most {LONGEST_NAME}, got "
            f"{shown!r}, which has {len(encoded)} bytes and a name of {longest}"
        )


def is_device(name: str) -> bool:
    """Return whether ``name`` is auto, cpu, cuda or cuda:N."""
    return name in ("auto", "cpu", "cuda") or name.removeprefix("cuda:").isdecimal()
