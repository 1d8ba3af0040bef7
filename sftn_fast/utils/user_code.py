"""File and line of the user's own code in an error: of a network, a method or another part that a plugin brings."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from sftn_fast.utils.text import one_line, printable

PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}
STANDARD = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib"))

plugins: set[Path] = set()
"""Files and folders of the plugins of this process, which may be installed packages too."""


def describe_error(error: BaseException, *, named: bool = True) -> str:
    """Return an error in one line, with its first line of text and the place in the user's code if there is one.

    Args:
        error: The error, caught where it left the user's code.
        named: Begin with the name of its class.
    """
    lines = str(error).strip().splitlines()
    text = one_line(lines[0]) if lines else "" if named else "no reason given"
    kind = type(error).__name__ if named else ""
    return f"{': '.join(filter(None, (kind, text)))}{place_of_error(error)}"


def place_of_error(error: BaseException) -> str:
    """Return `` (FILE, line N)`` of the innermost line of the user's that led to ``error``; empty without one."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    places = (place for each in reversed(causes) for place in reversed(list(_lines(each))) if _is_users(place[0]))
    return next((f" ({_shown(path)}, line {line})" for path, line in places), "")


def place_of_function(function: Callable[..., Any]) -> str:
    """Return `` (FILE, line N)`` where a function of the user's begins; empty for any other one."""
    code = getattr(function, "__code__", None)
    is_users = isinstance(code, CodeType) and _is_users(Path(code.co_filename))
    return f" ({_shown(Path(code.co_filename))}, line {code.co_firstlineno})" if is_users and code else ""


def _lines(error: BaseException) -> Iterator[tuple[Path, int]]:
    trace = error.__traceback__
    while trace is not None:
        yield Path(trace.tb_frame.f_code.co_filename), trace.tb_lineno
        trace = trace.tb_next


def _is_users(path: Path) -> bool:
    if any(path.is_relative_to(plugin) for plugin in plugins):
        return True
    others = path.is_relative_to(PACKAGE) or INSTALLED & set(path.parts) or any(map(path.is_relative_to, STANDARD))
    return path.is_absolute() and not others and path.suffix == ".py"


def _shown(path: Path) -> str:
    """Return a path as seen from the working folder, if it is in it."""
    here = Path.cwd()
    return printable(path.relative_to(here) if path.is_relative_to(here) else path, 200)
