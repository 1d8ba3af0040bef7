"""The student-oriented teacher: trained with two regularisers and without a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sftn_fast import cli
from sftn_fast.config import Config
from sftn_fast.experiment.kinds.base import Contents, EndOfEpoch, Kind, Role
from sftn_fast.experiment.kinds.snapshots import snapshots

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import Task


class SoTeacher(Kind):
    """Student-oriented teacher; see :class:`sftn_fast.tasks.SoTeacherTask`."""

    name = "soteacher"
    labels: ClassVar = {"soteacher": "SoTeacher"}
    teaches = True

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.teacher,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ("teacher",)

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        return {"soteacher": cli.to_dict(config)["soteacher"]}

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"student-oriented teacher {config.teacher}"

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast.tasks import SoTeacherTask

        network, epochs = runner.start("teacher"), runner.config.epochs_of(self.name)
        return SoTeacherTask(network, runner.config.soteacher, num_samples=runner.data.num_train, epochs=epochs)

    def end_of_epoch(self, runner: JobRunner, task: Task) -> EndOfEpoch | None:
        """See :meth:`Kind.end_of_epoch`."""
        return snapshots(runner, task)
