"""A student distilled from one of the run's teachers by one method, or by a sum of several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sftn_fast import cli
from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment.kinds import branch
from sftn_fast.experiment.kinds.base import Contents, EndOfEpoch, Kind, Role
from sftn_fast.experiment.kinds.sftn import SFTN
from sftn_fast.utils.run_files import BRANCH

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import DistillTask, Task


class Distill(Kind):
    """Distilled student."""

    name = "distill"
    labels: ClassVar = {
        "distill-teacher": "student of standard teacher",
        "distill-early": "student of early teacher",
        "distill-soteacher": "student of SoTeacher",
        "distill-sftn": "student of SFTN teacher",
    }
    exports_student = True

    def variants(self, config: Config, teachers: list[str]) -> Iterator[tuple[str | None, str | None]]:
        """See :meth:`Kind.variants`."""
        yield from ((teacher, method) for method in config.methods or (None,) for teacher in teachers)

    def check(self, config: Config, teachers: list[str]) -> None:
        """See :meth:`Kind.check`."""
        if not teachers:
            raise ConfigError(
                "stages must name teacher, sftn or soteacher, or teacher_file a trained one, for distill to have one"
            )

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return (config.student,)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        return ("student",)

    def learns_from(self, config: Config, job: Job) -> set[str]:
        """See :meth:`Kind.learns_from`."""
        return {str(job.source)}

    def parts_read(self, config: Config, job: Job) -> tuple[str, ...]:
        """See :meth:`Kind.parts_read`."""
        return (BRANCH,) if job.source == SFTN.name and branch.is_wanted(config) else ()

    def compared_with(self, job: Job) -> str | None:
        """See :meth:`Kind.compared_with`."""
        return job.source

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        identity: dict[str, Any] = {
            "distill": self.losses(config, job),
            "route": cli.to_dict(config)["route"],
            "gather": config.gather,
            "teacher": contents.of_trained(str(job.source)),
        }
        if self.parts_read(config, job):
            identity |= {"init_student": True, "branch": contents.of_trained(str(job.source), BRANCH)}
        # Logits of images that are never augmented are computed in larger batches, so they are equal up to rounding.
        return identity | ({"cache_teacher": True} if config.cache_teacher and not contents.augments else {})

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        source = self.labels[f"{self.name}-{job.source}"].removeprefix("student of ")
        start = ", starting as its branch" if self.parts_read(config, job) else ""
        return f"student {config.student} by {self.losses(config, job)} from {source}{start}"

    def failure(self, config: Config, job: Job, data: str) -> str:
        """See :meth:`Kind.failure`."""
        return f"{self.losses(config, job)!r} can't teach {config.student} from {config.teacher}"

    def losses(self, config: Config, job: Job) -> str:
        """Return the losses of ``job``, such as ``kd=0.9,ce=0.1``."""
        return job.method or config.distill

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast import distillers
        from sftn_fast.engine import distributed
        from sftn_fast.tasks import DistillTask

        student, teacher = runner.start("student"), runner.finished(str(runner.job.source))
        if self.parts_read(runner.config, runner.job):
            runner.start_as_branch(student, str(runner.job.source))
        distiller = distillers.build(
            self.losses(runner.config, runner.job),
            student=student,
            teacher=teacher,
            num_samples=runner.data.num_train,
            image_size=runner.data.image_size,
            labels=runner.data.train_labels,
            gather=runner.config.gather,
        )
        for line in (*distiller.describe(), *distiller.describe_warm_ups(runner.config.epochs_of(self.name))):
            distributed.say(f"  {line}")
        return DistillTask(student, distiller, runner.route(), splits=runner.config.optim.dot > 0)

    def end_of_epoch(self, runner: JobRunner, task: Task) -> EndOfEpoch | None:
        """See :meth:`Kind.end_of_epoch`."""
        from sftn_fast.experiment.teacher_cache.source import cache_logits

        return cache_logits(runner, cast("DistillTask", task)) if runner.config.cache_teacher else None
