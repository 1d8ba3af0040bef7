"""The standard teacher, trained with labels alone, or read from a file and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment.kinds.base import Contents, EndOfEpoch, Kind, Role
from sftn_fast.experiment.kinds.snapshots import snapshots

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import Task


class Teacher(Kind):
    """Standard teacher."""

    name = "teacher"
    labels: ClassVar = {"teacher": "standard teacher"}
    teaches = True

    def is_planned(self, config: Config) -> bool:
        """See :meth:`Kind.is_planned`."""
        return super().is_planned(config) or config.teacher_file is not None

    def check(self, config: Config, teachers: list[str]) -> None:
        """See :meth:`Kind.check`."""
        if (config.route.anchors or config.route.epochs) and config.teacher_file:
            raise ConfigError("route needs a teacher of this run's own training, and teacher_file names another")

    def trains(self, config: Config) -> bool:
        """See :meth:`Kind.trains`."""
        return config.teacher_file is None

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.teacher,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ("teacher",) if self.trains(config) else ()

    def initial_file(self, config: Config) -> tuple[str, str] | None:
        """See :meth:`Kind.initial_file`."""
        return ("teacher_file", config.teacher_file) if config.teacher_file else None

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        return {"teacher_file": contents.of_weights(config.teacher_file, config.teacher)}

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"standard teacher {config.teacher}"

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast.tasks import SupervisedTask

        return SupervisedTask(runner.start("teacher"))

    def end_of_epoch(self, runner: JobRunner, task: Task) -> EndOfEpoch | None:
        """See :meth:`Kind.end_of_epoch`."""
        return snapshots(runner, task)
