"""Registry of networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sftn_fast.models.staged import StagedNet
from sftn_fast.utils.text import printable
from sftn_fast.utils.user_code import place_of_function

Factory = Callable[..., StagedNet]
F = TypeVar("F", bound=Factory)

MAX_CLASSES, MAX_CHANNELS = 1_000_000, 4096
"""Largest sizes of a classifier and of the images; larger ones are mistakes that would exhaust the memory."""

_factories: dict[str, Factory] = {}
_prefixed: dict[str, Factory] = {}


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


def register_prefix(*prefixes: str) -> Callable[[F], F]:
    """Register a factory for all names that begin with one of ``prefixes``.

    It is called as ``factory(name, *, num_classes, in_channels, image_size, arguments)`` and names the network itself.
    """

    def add(factory: F) -> F:
        _prefixed.update(dict.fromkeys(prefixes, factory))
        return factory

    return add


def names() -> list[str]:
    """Return the names that :func:`build` accepts, in the order of registration."""
    return list(_factories)


def is_buildable(name: str) -> bool:
    """Return whether :func:`build` knows ``name``, or the project that its prefix stands for."""
    return name in _factories or _with_prefix(name) is not None


def _with_prefix(name: str) -> Factory | None:
    return next((factory for prefix, factory in _prefixed.items() if name.startswith(prefix)), None)


def build(
    name: str,
    *,
    num_classes: int = 100,
    in_channels: int = 3,
    image_size: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> StagedNet:
    """Build a network with new parameters, drawn from torch's global generator.

    Args:
        name: One of :func:`names`, or a network of timm's, such as ``timm:convnext_tiny``.
        num_classes: Classes, the width of the logits.
        in_channels: Channels of the images.
        image_size: Side of the images in pixels, for networks of timm's that are made for one size.
        arguments: Arguments of an exported network of timm's, in place of those in its name.

    Raises:
        ValueError: The name is unknown, or a count is below 1 or too large; or timm can't build the network so.
        TypeError: A count is no whole number, or the function registered for the name returns no ``StagedNet``.
        ImportError: The network is that of a package which can't be imported.
    """
    require_counts(num_classes=num_classes, in_channels=in_channels)
    prefixed = _with_prefix(name)
    if prefixed is not None:
        return prefixed(
            name, num_classes=num_classes, in_channels=in_channels, image_size=image_size, arguments=arguments
        )
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
