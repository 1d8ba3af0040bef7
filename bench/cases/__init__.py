"""What is measured, one module a family: each has `CASES`, a list of :class:`~bench.cases.case.Case`.

A module whose figures ask for a word to go with them has it as `NOTE`.
"""

from __future__ import annotations

import importlib
import pkgutil

from bench.cases.case import Case

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "case"))


def of_family(family: str) -> list[Case]:
    cases: list[Case] = importlib.import_module(f"bench.cases.{family}").CASES
    return cases


def note_on(family: str) -> str:
    """What the record of ``family`` has to say beyond what holds for all."""
    return str(getattr(importlib.import_module(f"bench.cases.{family}"), "NOTE", ""))
