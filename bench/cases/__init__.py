"""The measured cases, one module for each family, with a list `CASES` of :class:`~bench.cases.case.Case`.

A module may have a `NOTE` that explains its results, and `LARGE_CASES`, which only a GPU has the speed for: tensors
beyond its L2 cache, and half precision.
"""

from __future__ import annotations

import importlib
import pkgutil

from bench.cases.case import Case

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "case"))


def of_family(family: str, *, large: bool = False) -> list[Case]:
    module = importlib.import_module(f"bench.cases.{family}")
    cases: list[Case] = getattr(module, "LARGE_CASES", []) if large else module.CASES
    return cases


def note_on(family: str) -> str:
    """Return the note for the record of ``family``, or an empty string."""
    return str(getattr(importlib.import_module(f"bench.cases.{family}"), "NOTE", ""))
