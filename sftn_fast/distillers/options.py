"""Options of a method: the keyword-only arguments of its constructor, read from text.

Their annotations say what is allowed: ``int``, ``float``, ``bool``, ``str``, ``Literal["a", "b"]``, and numbers with a
bound, ``Annotated[int, Bound(1)]``.
"""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin


@dataclass(frozen=True)
class Bound:
    """Least value of a number."""

    minimum: float
    inclusive: bool = True

    def __str__(self) -> str:
        return f"at least {self.minimum:g}" if self.inclusive else f"greater than {self.minimum:g}"

    def admits(self, value: float) -> bool:
        """Whether ``value`` is within the bound."""
        return value >= self.minimum if self.inclusive else value > self.minimum


Positive = Annotated[float, Bound(0, inclusive=False)]
NonNegative = Annotated[float, Bound(0)]


@dataclass(frozen=True)
class Option:
    """One option: what it is called and what it takes."""

    name: str
    kind: Any
    """int, float, bool, str or a Literal."""
    bound: Bound | None = None

    @property
    def allowed(self) -> str:
        """What the option takes, in words."""
        if get_origin(self.kind) is Literal:
            return "one of " + ", ".join(get_args(self.kind))
        words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a word"}[self.kind]
        return f"{words} {self.bound}" if self.bound else words

    def read(self, text: str) -> Any:
        """The value that ``text`` stands for.

        Raises:
            ValueError: It stands for none that is allowed.
        """
        with suppress(ValueError, KeyError):
            value = self._convert(text)
            if self._admits(value):
                return value
        raise ValueError(f"{self.name} must be {self.allowed}, got {text!r}")

    def _convert(self, text: str) -> Any:
        if get_origin(self.kind) is Literal:
            return {choice: choice for choice in get_args(self.kind)}[text]
        if self.kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return self.kind(text)

    def _admits(self, value: Any) -> bool:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        return self.bound is None or self.bound.admits(value)


def options_of(cls: type) -> dict[str, Option]:
    """The options that ``cls`` takes, by name."""
    parameters = inspect.signature(cls, eval_str=True).parameters.values()
    return {p.name: _option(p.name, p.annotation) for p in parameters if p.kind is p.KEYWORD_ONLY}


def _option(name: str, annotation: Any) -> Option:
    if get_origin(annotation) is Annotated:
        kind, bound = get_args(annotation)
        return Option(name, kind, bound)
    return Option(name, annotation)
