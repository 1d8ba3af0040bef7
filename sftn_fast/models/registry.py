"""Registry of networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TypeVar

from sftn_fast.models.staged import StagedNet
from sftn_fast.utils.text import printable
from sftn_fast.utils.user_code import place_of_function

Factory = Callable[..., StagedNet]
F = TypeVar("F", bound=Factory)

MAX_CLASSES, MAX_CHANNELS = 1_000_000, 4096
"""Largest sizes of a classifier and of the images; larger ones are mistakes that would exhaust the memory."""

_factories: dict[str, Factory] = {}


def register(name: str) -> Callable[[F], F]:
    """Register ``factory(*, num_classes, in_channels) -> StagedNet`` for :func:`build` under ``name``.

    Raises:
        ValueError: The name is taken.
    """

    def add(factory: F) -> F:
        if name in _factories:
            raise ValueError(f"a network named {name!r} is registered already")
        _factories[name] = factory
        return factory

    return add


def names() -> list[str]:
    """Return the names that :func:`build` accepts, in the order of registration."""
    return list(_factories)


def build(name: str, *, num_classes: int = 100, in_channels: int = 3) -> StagedNet:
    """Build a network with new parameters, drawn from torch's global generator.

    Args:
        name: One of :func:`names`.
        num_classes: Classes, the width of the logits.
        in_channels: Channels of the images.

    Raises:
        ValueError: The name is unknown, or a count is below 1 or too large.
        TypeError: A count is no whole number, or the function registered for the name returns no ``StagedNet``.
    """
    require_counts(num_classes=num_classes, in_channels=in_channels)
    if name not in _factories:
        raise ValueError(unknown_name("network", name, names()))
    net = _factories[name](num_classes=num_classes, in_channels=in_channels)
    if not isinstance(net, StagedNet):
        where = place_of_function(_factories[name])
        raise TypeError(
            f"the function of network {name!r}{where} must return a StagedNet, got {type(net).__name__}; "
            "models.as_staged makes one of a module"
        )
    net.name = name
    return net


def require_counts(*, num_classes: int, in_channels: int) -> None:
    """Check the counts of a network before any memory is allocated.

    Raises:
        ValueError: A count is below 1 or too large.
        TypeError: A count is no whole number.
    """
    for argument, value, largest in (
        ("num_classes", num_classes, MAX_CLASSES),
        ("in_channels", in_channels, MAX_CHANNELS),
    ):
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{argument} must be a whole number, got {printable(repr(value), 20)}")
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {printable(value, 20)}")
        if value > largest:
            raise ValueError(f"{argument} must be at most {largest}, got {printable(value, 20)}")


def unknown_name(kind: str, name: str, known: list[str], *, shown: int = 40) -> str:
    """Return the message for a name that is not in ``known``, with close matches and the first ``shown`` names."""
    folded: dict[str, list[str]] = {}
    for other in known:
        folded.setdefault(other.lower(), []).append(other)
    near = [other for match in difflib.get_close_matches(name.lower(), folded, n=3) for other in folded[match]]
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    more = f" and {len(known) - shown} more" if len(known) > shown else ""
    return f"unknown {kind} {printable(repr(name), 80)}{hint}; known are {', '.join(known[:shown])}{more}"
