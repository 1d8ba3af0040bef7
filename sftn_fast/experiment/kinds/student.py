"""The student alone, trained with labels: the baseline of every distillation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sftn_fast.config import Config
from sftn_fast.experiment.kinds.base import Kind, Role

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import Task


class Student(Kind):
    """Student without a teacher. Compared with the standard teacher, if the run has one."""

    name = "student"
    labels: ClassVar = {"student": "student alone"}
    exports_student = True

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.student,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ("student",)

    def needs(self, config: Config, job: Job) -> set[str]:
        """See :meth:`Kind.needs`."""
        return {"teacher"}

    def compared_with(self, job: Job) -> str | None:
        """See :meth:`Kind.compared_with`."""
        return "teacher"

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"student {config.student} alone"

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast.tasks import SupervisedTask

        return SupervisedTask(runner.start("student"))
