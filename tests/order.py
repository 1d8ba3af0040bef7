"""The order of the tests on several processes: a module with a long test first, one that waits for compilers last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TypeVar

T = TypeVar("T")


def deal(modules: Sequence[list[T]], processes: int) -> list[list[T]]:
    """Deal modules in turn, and return the tests of each process."""
    return [[test for module in modules[i::processes] for test in module] for i in range(processes)]


def ordered(
    tests: Sequence[T], processes: int, module: Callable[[T], str], long: Callable[[T], bool], late: Callable[[T], bool]
) -> list[T]:
    """Return the tests in the order in which ``--dist worksteal`` divides them best.

    It gives each process an equal number of tests in a row, and moves the end of the longest row to an idle process.
    So each row begins with long tests, and ends with those that wait for compilers. A module stays whole, for its
    fixtures.
    """
    modules = [list(group) for _, group in groupby(tests, key=module)]
    last = [group for group in modules if any(map(late, group))]
    first = [group for group in modules if group not in last and any(map(long, group))]
    rest = [test for group in modules if group not in last and group not in first for test in group]
    result: list[T] = []
    for i, (head, tail) in enumerate(zip(deal(first, processes), deal(last, processes), strict=True)):
        size = (len(tests) - len(result)) // (processes - i)
        count = max(0, size - len(head) - len(tail)) if i < processes - 1 else len(rest)
        result += [*head, *rest[:count], *tail]
        rest = rest[count:]
    return result
