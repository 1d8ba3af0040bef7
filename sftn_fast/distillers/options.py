"""Options of a method: the keyword-only arguments of its constructor, read from text.

Their annotations define the allowed values: ``int``, ``float``, ``bool``, ``str``, ``Literal["a", "b"]``, and numbers
with a bound, ``Annotated[int, Bound(1)]``.
"""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from sftn_fast.utils.similar_names import did_you_mean, nearest


@dataclass(frozen=True)
class Bound:
    """Smallest allowed value of a number."""

    minimum: float
    inclusive: bool = True

    def __str__(self) -> str:
        return f"at least {self.minimum:g}" if self.inclusive else f"greater than {self.minimum:g}"

    def admits(self, value: float) -> bool:
        """Return whether ``value`` is within the bound."""
        return value >= self.minimum if self.inclusive else value > self.minimum


OptionValue = int | float | bool | str
Positive = Annotated[float, Bound(0, inclusive=False)]
NonNegative = Annotated[float, Bound(0)]


@dataclass(frozen=True)
class Option:
    """Name and type of one option."""

    name: str
    kind: Any
    """``int``, ``float``, ``bool``, ``str`` or a ``Literal``."""
    bound: Bound | None = None

    @property
    def allowed(self) -> str:
        """Allowed values, in words."""
        if get_origin(self.kind) is Literal:
            return "one of " + ", ".join(get_args(self.kind))
        words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a word"}[self.kind]
        return f"{words} {self.bound}" if self.bound else words

    def read(self, text: str) -> OptionValue:
        """Return ``text`` as a value of the option.

        Raises:
            ValueError: ``text`` is no allowed value.
        """
        with suppress(ValueError, KeyError):
            value = self._convert(text)
            if self._admits(value):
                return value
        choices = get_args(self.kind) if get_origin(self.kind) is Literal else ()
        raise ValueError(f"{self.name} must be {self.allowed}, got {text!r}{did_you_mean(nearest(text, choices))}")

    def _convert(self, text: str) -> OptionValue:
        if get_origin(self.kind) is Literal:
            return {choice: choice for choice in get_args(self.kind)}[text]
        if self.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return self.kind(text)

    def _admits(self, value: OptionValue) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return self.bound is None or (not isinstance(value, str) and self.bound.admits(value))


def options_of(cls: type) -> dict[str, Option]:
    """Return the options of ``cls`` by name."""
    parameters = inspect.signature(cls, eval_str=True).parameters.values()
    return {p.name: _option(p.name, p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _option(name: str, annotation: Any) -> Option:
    if get_origin(annotation) is Annotated:
        kind, bound = get_args(annotation)
        return Option(name, kind, bound)
    return Option(name, annotation)
