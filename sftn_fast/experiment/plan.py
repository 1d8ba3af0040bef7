"""The plan of an experiment: its jobs, their order and the names of their folders. Imports no torch.

The report reads the list of a run's jobs here as well: anything else in the folder doesn't belong to that run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment import kinds
from sftn_fast.experiment.kinds import KINDS, Kind
from sftn_fast.utils.run_files import RESULT

SLUG = 150
"""Characters of a method in a folder's name; file systems allow 255."""


@dataclass(frozen=True)
class Job:
    """One network to train: a kind of job, for one seed and, if it distils, from one teacher by one method."""

    kind: str
    seed: int
    source: str | None = None
    """The job of the same seed whose network teaches."""
    method: str | None = None
    """The losses, if the configuration names several methods."""

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        slug = re.sub(r"[^\w.+=-]+", "_", self.method)[:SLUG] if self.method else None
        return "-".join(part for part in (self.kind, self.source, slug) if part)

    @property
    def place(self) -> str:
        """Path of the job's folder within the run's folder."""
        return f"seed{self.seed}/{self.name}"

    @property
    def behaviour(self) -> Kind:
        """Everything in which this kind of job differs from others."""
        return KINDS[self.kind]

    def folder(self, root: Path) -> Path:
        """Return the job's folder in the run's folder ``root``."""
        return root / f"seed{self.seed}" / self.name

    def is_finished(self, root: Path) -> bool:
        """Return whether the job has a result, whatever the settings of that result."""
        return (self.folder(root) / RESULT).is_file()


def plan(config: Config) -> list[Job]:
    """Return the jobs in the order in which they run.

    Raises:
        ConfigError: A job needs a teacher that the experiment lacks, or two jobs have the same name.
    """
    teachers = kinds.teachers(config)
    for kind in KINDS.values():
        if kind.is_planned(config):
            kind.check(config, teachers)
    jobs = list(_jobs(config))
    (folder, count), *_ = Counter((job.seed, job.name) for job in jobs).most_common(1)
    if count > 1:
        raise ConfigError(f"methods must differ from each other, got {list(config.methods)!r} ({folder[1]} twice)")
    return jobs


def places(settings: Mapping[str, Any]) -> set[str] | None:
    """Return the paths of a run's jobs, such as ``seed0/teacher``, by the ``settings`` in its ``config.yaml``.

    The file may be anybody's: None if it doesn't tell which jobs the run has.
    """
    try:
        config = Config(
            stages=tuple(settings["stages"]),
            seeds=tuple(settings["seeds"]),
            methods=tuple(settings.get("methods") or ()),
            teacher_file=settings.get("teacher_file"),
            teacher_epoch=settings.get("teacher_epoch"),
            epochs=settings.get("epochs", 240),
            stage_epochs=settings.get("stage_epochs") or {},
        )
        return {job.place for job in _jobs(config)}
    except (KeyError, TypeError, ValueError):  # a ConfigError is a ValueError
        return None


def _jobs(config: Config) -> Iterator[Job]:
    teachers = kinds.teachers(config)
    for seed in config.seeds:
        for kind in KINDS.values():
            if kind.is_planned(config):
                for source, method in kind.variants(config, teachers):
                    yield Job(kind.name, seed, source, method)
