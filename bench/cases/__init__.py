"""What is measured, one module a family: each has `CASES`, a list of :class:`~bench.cases.case.Case`."""

from __future__ import annotations

import importlib
import pkgutil

from bench.cases.case import Case

FAMILIES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "case"))


def of_family(family: str) -> list[Case]:
    cases: list[Case] = importlib.import_module(f"bench.cases.{family}").CASES
    return cases
