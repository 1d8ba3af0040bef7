"""Options declared by a method's constructor, and their values read from text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from sftn_fast.distillers.options import Bound, NonNegative, Positive, options_of


class Toy:
    def __init__(
        self,
        setup: Any,
        *,
        layers: Annotated[int, Bound(1)] = 2,
        margin: float = 1.0,
        weight: NonNegative = 0.0,
        temperature: Positive = 4.0,
        normalise: bool = True,
        variant: Literal["paper", "authors"] = "paper",
        tag: str = "",
    ) -> None:
        """A method with one option of each kind."""


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("layers", "1", 1),
        ("margin", "-2.5", -2.5),
        ("weight", "0", 0.0),
        ("temperature", "1e-3", 1e-3),
        ("normalise", "true", True),
        ("normalise", "False", False),
        ("variant", "authors", "authors"),
        ("tag", "nan", "nan"),
    ],
)
def test_reads(name: str, text: str, value: object) -> None:
    read = options_of(Toy)[name].read(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("layers", "0", "an integer at least 1"),
        ("layers", "2.0", "an integer at least 1"),
        ("margin", "nan", "a finite number"),
        ("margin", "-inf", "a finite number"),
        ("margin", "wide", "a finite number"),
        ("weight", "-1e-9", "a finite number at least 0"),
        ("temperature", "0", "a finite number greater than 0"),
        ("normalise", "1", "true or false"),
        ("variant", "other", "one of paper, authors"),
    ],
)
def test_refuses(name: str, text: str, allowed: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {allowed}, got '{text}'$"):
        options_of(Toy)[name].read(text)


def test_only_keyword_only_arguments_are_options() -> None:
    assert list(options_of(Toy)) == ["layers", "margin", "weight", "temperature", "normalise", "variant", "tag"]
