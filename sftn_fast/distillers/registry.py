"""Registry of the distillation methods; lists their names without importing them."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sftn_fast.distillers import methods

if TYPE_CHECKING:
    from sftn_fast.distillers.method import Method

    M = TypeVar("M", bound=Method)

FAMILIES = ("predictions", "feature maps", "vectors", "relations")
"""What methods compare: logits, maps, pooled vectors, or how images relate."""

_methods: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[M]], type[M]]:
    """Register a :class:`~sftn_fast.distillers.method.Method` under ``name``, as a class decorator.

    A file in ``distillers/methods`` registers one method under the file's name. Code elsewhere may register methods
    under any free name, before a specification that uses them is parsed.

    Raises:
        ValueError: The name is taken.
    """

    def add(cls: type[M]) -> type[M]:
        in_its_file = cls.__module__ == f"{methods.__name__}.{name}"
        if name in _methods or name == "ce" or (name in _files() and not in_its_file):
            raise ValueError(f"a distillation method {name!r} is registered already")
        _methods[name] = cls
        return cls

    return add


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(_files() | _methods.keys())


def _files() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(methods.__path__)}


def by_family() -> dict[str, list[str]]:
    """Return the names of all methods, sorted, by family."""
    families = {name: _family_of(name) for name in names()}
    return {family: [name for name in families if families[name] == family] for family in FAMILIES}


def _family_of(name: str) -> str:
    """Return the ``family`` of a method, from its file if it is not imported yet."""
    if name in _methods:
        return _methods[name].family
    source = (Path(methods.__path__[0]) / f"{name}.py").read_text("utf-8")
    found = re.search(r'^    family = "(.+)"$', source, re.MULTILINE)
    return found[1] if found else FAMILIES[0]


def find(name: str) -> type[Method]:
    """Return the class registered as ``name``, one of :func:`names`; import its file if needed."""
    if name not in _methods:
        importlib.import_module(f"{methods.__name__}.{name}")
    return _methods[name]
