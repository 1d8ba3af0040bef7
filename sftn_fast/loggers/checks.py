"""Checks of the loggers before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from sftn_fast.loggers.base import Logger, LoggerError, find
from sftn_fast.loggers.guard import reason, undisturbed

T = TypeVar("T")


def check(names: Sequence[str], root: Path) -> None:
    """Raise :class:`LoggerError` if one of the loggers can't be used. Nothing is written.

    Args:
        names: Of the loggers.
        root: Folder of the experiment.
    """
    for logger in map(find, names):
        _refuse(logger, partial(logger.check, root))


def prepare(names: Sequence[str], root: Path) -> list[str]:
    """Create what all runs of the experiment share, and return a line for each logger that says where it logs.

    Raises:
        LoggerError: A service refuses, or its folder in ``root`` is a link.
    """
    for name in names:
        if (root / name).is_symlink():
            raise LoggerError(f"{root / name} is a link, and a run writes through none: remove it")
    loggers = [find(name) for name in names]
    return [f"logger {each.name}: {_refuse(each, partial(each.prepare, root))}" for each in loggers]


def _refuse(logger: type[Logger], call: Callable[[], T]) -> T:
    """Return ``call()``; turn anything that it raises into a :class:`LoggerError`."""
    try:
        with undisturbed():
            return call()
    except LoggerError:
        raise
    except (Exception, SystemExit) as error:  # of any library
        raise LoggerError(f"logger {logger.name} can't be used: {reason(error)}") from error
