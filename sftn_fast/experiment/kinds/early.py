"""The standard teacher as it was after an earlier epoch: a rival of the student-friendly teacher that costs nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment.kinds.base import Contents, Kind, Role

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.models import StagedNet
    from sftn_fast.tasks import Task


class Early(Kind):
    """Snapshot of the standard teacher, measured and not trained.

    Source: Wang et al., "Efficient Knowledge Distillation from Model Checkpoints", NeurIPS 2022; Cho & Hariharan, "On
    the Efficacy of Knowledge Distillation", ICCV 2019, whose teachers stop early.
    """

    name = "early"
    labels: ClassVar = {"early": "early teacher"}
    teaches = True

    def is_planned(self, config: Config) -> bool:
        """See :meth:`Kind.is_planned`."""
        return config.takes_early_teacher

    def check(self, config: Config, teachers: list[str]) -> None:
        """See :meth:`Kind.check`."""
        if config.teacher_file or "teacher" not in config.stages:
            raise ConfigError("the stage early and teacher_epoch need the stage teacher, whose earlier epoch they take")
        if config.route.anchors or config.route.epochs:
            raise ConfigError("route can't be combined with the stage early or teacher_epoch, which has one epoch only")

    def trains(self, config: Config) -> bool:
        """See :meth:`Kind.trains`."""
        return False

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.teacher,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ()

    def learns_from(self, config: Config, job: Job) -> set[str]:
        """See :meth:`Kind.learns_from`."""
        return {"teacher"}

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        return {"teacher": contents.of_trained("teacher"), "teacher_epoch": config.early_epoch}

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"standard teacher {config.teacher} after epoch {config.early_epoch} of {config.epochs_of('teacher')}"

    def measured(self, runner: JobRunner) -> tuple[str, StagedNet]:
        """See :meth:`Kind.measured`."""
        epoch = runner.config.early_epoch
        return f"epoch {epoch}", runner.snapshot_of("teacher", epoch)

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        raise AssertionError("an early teacher is not trained")
