"""The interface of a logger, and the registry of all loggers."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sftn_fast.config import ConfigError
from sftn_fast.utils.text import one_line


class LoggerError(ConfigError):
    """A logger can't be used. The message says what to do, in one line."""


@dataclass(frozen=True)
class RunInfo:
    """What a service is told about one of its runs, which is one training."""

    experiment: str
    """Name of the group of runs: that of the experiment's folder."""
    name: str
    """Name of the run, such as ``seed0/teacher``."""
    kind: str
    """Kind of the job."""
    root: Path
    """Folder of the experiment, which receives the service's local files."""
    folder: Path
    """Folder of the training, which keeps the id of the service's run."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Configuration and versions, by dotted name."""


class Logger(ABC):
    """One run of a service. Any method may raise anything: the caller reports it and stops using the logger."""

    name: ClassVar[str]
    """As ``--logger`` names it."""
    module: ClassVar[str]
    """Module to import."""
    replaces: ClassVar[bool] = False
    """Whether :meth:`begin` drops what was logged after its step, so that a resumed run logs it again."""

    def __init__(self, info: RunInfo) -> None:
        self.info = info

    @classmethod
    def check(cls, root: Path) -> None:
        """Raise :class:`LoggerError` if the service can't be used. Nothing is written.

        Args:
            root: Folder of the experiment.
        """
        cls.require()

    @classmethod
    def prepare(cls, root: Path) -> str:
        """Create what all runs of the experiment share, and return a line that says where the metrics go.

        Raises:
            LoggerError: The service refuses.
        """
        return f"in {root}"

    @classmethod
    def require(cls) -> Any:
        """Return the service's library.

        Raises:
            LoggerError: It can't be imported. The message says what to install.
        """
        try:
            return importlib.import_module(cls.module)
        except Exception as error:  # a broken package may raise anything
            raise LoggerError(
                f"logger {cls.name} needs the package {cls.name}, which can't be imported "
                f"({one_line(str(error))}); pip install 'sftn_fast[{cls.name}]'"
            ) from error

    @abstractmethod
    def begin(self, run_id: str | None, step: int) -> str:
        """Start the service's run, or continue the one with the id ``run_id``.

        Args:
            run_id: What an earlier start returned here.
            step: Steps that the training has done before.

        Returns:
            The id of the run.
        """

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int, *, row: int) -> None:
        """Log ``metrics`` of ``step``.

        Args:
            metrics: Values by name, such as ``train/total``.
            step: Steps done. Several calls may have the same.
            row: A number that is larger in every call, also in those of a resumed run.
        """

    @abstractmethod
    def pictures(self, files: Sequence[Path]) -> None:
        """Log image files."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """End the service's run for now; ``finished`` says whether the training is at its end."""


L = TypeVar("L", bound=type[Logger])
_loggers: dict[str, type[Logger]] = {}


def register(name: str) -> Callable[[L], L]:
    """Return a decorator that registers a class of loggers under ``name``."""

    def decorate(cls: L) -> L:
        cls.name = name
        _loggers[name] = cls
        return cls

    return decorate


def find(name: str) -> type[Logger]:
    """Return the class of the logger ``name``."""
    return _loggers[name]
