"""The student-friendly teacher: trained together with branches of the student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from sftn_fast import cli
from sftn_fast.config import Config, ConfigError, SFTNConfig, check
from sftn_fast.experiment.kinds import branch
from sftn_fast.experiment.kinds.base import Contents, EndOfEpoch, Kind, Role
from sftn_fast.experiment.kinds.snapshots import snapshots
from sftn_fast.utils.run_files import BRANCH

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import Task

FROM_TEACHER = "teacher"
"""Value of ``sftn.init`` by which the network starts as the run's standard teacher."""

ADDED = ("branch_lr", "branch_weight_decay")
"""Settings that are in an identity only with another value than the default."""


class SFTN(Kind):
    """Student-friendly teacher."""

    name = "sftn"
    labels: ClassVar = {"sftn": "SFTN teacher"}
    teaches = True

    def check(self, config: Config, teachers: list[str]) -> None:
        """See :meth:`Kind.check`."""
        if config.sftn.init == FROM_TEACHER and FROM_TEACHER not in teachers:
            raise ConfigError("sftn.init=teacher needs the stage teacher, or a teacher_file")
        if config.optim.name == "rprop":
            allowed = "greater than 0 with optim.name=rprop, whose smallest step is not a multiple of the learning rate"
            check(config.sftn.branch_lr > 0, "sftn.branch_lr", config.sftn.branch_lr, allowed)

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.teacher,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ("student",) if config.sftn.init else ("teacher", "student")

    def learns_from(self, config: Config, job: Job) -> set[str]:
        """See :meth:`Kind.learns_from`."""
        return {FROM_TEACHER} if config.sftn.init == FROM_TEACHER else set()

    def initial_file(self, config: Config) -> tuple[str, str] | None:
        """See :meth:`Kind.initial_file`."""
        return ("sftn.init", config.sftn.init) if config.sftn.init not in (None, FROM_TEACHER) else None

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        settings = dict(cli.to_dict(config)["sftn"])
        del settings["init_student"]  # which changes the students
        # Identities of earlier versions don't have these.
        for key in ADDED:
            if getattr(config.sftn, key) == getattr(SFTNConfig, key):
                del settings[key]
        if config.sftn.init == FROM_TEACHER:
            return {"student": config.student, "sftn": settings, "init": contents.of_trained(FROM_TEACHER)}
        settings["init"] = contents.of_weights(config.sftn.init, config.teacher)
        return {"student": config.student, "sftn": settings}

    def lacks(self, config: Config, result: dict[str, Any]) -> str | None:
        """See :meth:`Kind.lacks`."""
        return BRANCH if branch.is_wanted(config) and not branch.is_saved(result) else None

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"student-friendly teacher {config.teacher} for {config.student}"

    def failure(self, config: Config, job: Job, data: str) -> str:
        """See :meth:`Kind.failure`."""
        return f"{config.teacher} can't become a student-friendly teacher for {config.student}"

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast.engine import distributed
        from sftn_fast.sftn import StudentAwareTeacher
        from sftn_fast.tasks import SFTNTask

        config = runner.config.sftn
        if config.init == FROM_TEACHER:
            teacher = runner.finished(FROM_TEACHER)
        elif config.init:
            teacher = runner.load("sftn.init", config.init)
        else:
            teacher = runner.start("teacher")
        student_aware = StudentAwareTeacher(
            teacher,
            runner.start("student"),
            image_size=runner.data.image_size,
            branch_stages=config.branch_stages,
            share_student=config.share_student,
        )
        for line in student_aware.describe():
            distributed.say(f"  {line}")
        return SFTNTask(student_aware, config)

    def end_of_epoch(self, runner: JobRunner, task: Task) -> EndOfEpoch | None:
        """See :meth:`Kind.end_of_epoch`."""
        return snapshots(runner, task)

    def extra_figures(self, runner: JobRunner, task: Task) -> dict[str, Any]:
        """Save the branch from which students may start; see :meth:`Kind.extra_figures`."""
        branch.save(runner, task)
        return {}
