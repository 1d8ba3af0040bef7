"""Which methods there are. Knows their names without importing them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sftn_fast.distillers import methods

if TYPE_CHECKING:
    from sftn_fast.distillers.method import Method

    M = TypeVar("M", bound=Method)

_methods: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Class decorator that makes a :class:`~sftn_fast.distillers.method.Method` known under ``name``.

    A file in ``distillers/methods`` registers the method that it is named after. Code elsewhere registers what it
    likes, before the specification that uses it is parsed.

    Raises:
        ValueError: The name is taken.
    """

    def add(cls: type[M]) -> type[M]:
        if name in _methods or name == "ce":
            raise ValueError(f"a distillation method {name!r} is registered already")
        _methods[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Names of all methods, sorted."""
    files = {module.name for module in pkgutil.iter_modules(methods.__path__)}
    return sorted(files | _methods.keys())


def find(name: str) -> type[Method]:
    """The class registered as ``name``, one of :func:`names`; imports its file."""
    if name not in _methods:
        importlib.import_module(f"{methods.__name__}.{name}")
    return _methods[name]
