"""Which networks an experiment trains, in what order, and what their folders are called. Needs no torch.

The report has its list of a run's jobs from here too: what else lies in the folder is not of that run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftn_fast.config import Config, ConfigError

SLUG = 150
"""Letters of a method that a folder's name takes; file systems allow 255."""
RESULT = "result.json"
"""A finished stage's figures, in its folder; written last, so that its presence says that the stage is finished."""


@dataclass(frozen=True)
class Job:
    """One network to train: a stage of the configuration, for one seed and, if it distils, from one teacher."""

    kind: str
    seed: int
    source: str | None = None
    method: str | None = None
    """The losses, where the configuration names several."""

    @property
    def name(self) -> str:
        """Name of the stage's folder."""
        slug = re.sub(r"[^\w.+=-]+", "_", self.method)[:SLUG] if self.method else None
        return "-".join(part for part in (self.kind, self.source, slug) if part)

    @property
    def place(self) -> str:
        """The stage's folder within that of a run."""
        return f"seed{self.seed}/{self.name}"

    def folder(self, root: Path) -> Path:
        """The stage's folder in that of a run."""
        return root / f"seed{self.seed}" / self.name

    def is_finished(self, root: Path) -> bool:
        """Whether the stage has its result; not whether that is of the present configuration."""
        return (self.folder(root) / RESULT).is_file()


def plan(config: Config) -> list[Job]:
    """The stages in the order in which they run.

    Raises :class:`ConfigError` where a stage needs a teacher that the experiment does not have.
    """
    teachers = _teachers(config)
    if "distill" in config.stages and not teachers:
        raise ConfigError(
            "stages must name teacher or sftn, or teacher_file a trained teacher, for distill to have one"
        )
    if config.sftn.init == "teacher" and "sftn" in teachers and "teacher" not in teachers:
        raise ConfigError("sftn.init=teacher needs the stage teacher, or a teacher_file")
    if "collaborate" in config.stages and config.collaborate.init not in (None, *teachers):
        raise ConfigError(f"collaborate.init={config.collaborate.init} needs that stage")
    if (config.route.anchors or config.route.epochs) and config.teacher_file:
        raise ConfigError("route needs a teacher of this run's own training, and teacher_file names another")
    stages = list(_stages(config))
    (folder, count), *_ = Counter((stage.seed, stage.name) for stage in stages).most_common(1)
    if count > 1:
        raise ConfigError(f"methods must differ from each other, got {list(config.methods)!r} ({folder[1]} twice)")
    return stages


def places(settings: Mapping[str, Any]) -> set[str] | None:
    """The stages' folders, as ``seed0/teacher``, of a run with ``settings``, which may be anybody's ``config.yaml``.

    None where they don't say which stages the run has.
    """
    try:
        config = Config(
            stages=tuple(settings["stages"]),
            seeds=tuple(settings["seeds"]),
            methods=tuple(settings.get("methods") or ()),
            teacher_file=settings.get("teacher_file"),
        )
        return {stage.place for stage in _stages(config)}
    except (KeyError, TypeError, ValueError):  # a ConfigError is the latter
        return None


def needs(config: Config, stage: Job) -> set[str]:
    """Names of the stages of the same seed, if the experiment has them, that ``stage`` reads from."""
    if stage.kind == "distill":
        return {str(stage.source)}
    if stage.kind == "student":
        return {"teacher"}  # to be compared with
    if stage.kind == "sftn" and config.sftn.init == "teacher":
        return {"teacher"}
    if stage.kind == "collaborate" and config.collaborate.init:
        return {config.collaborate.init}
    return set()


def networks_of(config: Config) -> tuple[str, ...]:
    """The networks of the stage "collaborate"."""
    return config.collaborate.networks or (config.teacher, config.student)


def _teachers(config: Config) -> list[str]:
    teachers: list[str] = [kind for kind in ("teacher", "sftn") if kind in config.stages]
    if config.teacher_file and "teacher" not in teachers:
        teachers.insert(0, "teacher")
    return teachers


def _stages(config: Config) -> Iterator[Job]:
    teachers, methods = _teachers(config), config.methods or (None,)
    for seed in config.seeds:
        yield from (Job(kind, seed) for kind in teachers)
        if "student" in config.stages:
            yield Job("student", seed)
        if "distill" in config.stages:
            yield from (Job("distill", seed, source, method) for method in methods for source in teachers)
        if "collaborate" in config.stages:
            yield Job("collaborate", seed)
