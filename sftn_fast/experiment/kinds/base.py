"""The interface of a kind of job."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from sftn_fast.config import Config, EmaConfig

# Kinds are looked up by the report and the command line, which import no torch.
if TYPE_CHECKING:
    from sftn_fast.data import ImageData
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.models import StagedNet
    from sftn_fast.tasks import Task

Role = Literal["teacher", "student"]
EndOfEpoch = Callable[[int], None]
"""Callback after an epoch, which is counted from 1."""


class Contents(Protocol):
    """Checksums of what a job starts from."""

    @property
    def augments(self) -> bool:
        """Whether an image differs from epoch to epoch."""

    def of_weights(self, path: str | None, network: str) -> str | None:
        """Return the checksum of the weights that ``path`` names; None without a path."""

    def of_trained(self, job: str, part: str | None = None) -> str:
        """Return the checksum of the network that the job of this name has exported for the same seed.

        With ``part``, that of the network in this folder of the job.
        """


class Kind(ABC):
    """One kind of job: everything in which it differs from the others. Adding a kind is adding one such class.

    :class:`~sftn_fast.experiment.job.JobRunner` does what all kinds have in common.
    """

    name: ClassVar[str]
    """As ``--stages`` names it, and first part of the names of its folders."""
    labels: ClassVar[Mapping[str, str]]
    """Names for people to read, by the name of the job without its method."""
    teaches: ClassVar[bool] = False
    """Whether students learn from the network."""
    exports_student: ClassVar[bool] = False
    """Whether the network is a student, which the run exports."""

    def is_planned(self, config: Config) -> bool:
        """Return whether the experiment has jobs of this kind."""
        return self.name in config.stages

    def variants(self, config: Config, teachers: list[str]) -> Iterator[tuple[str | None, str | None]]:
        """Yield source and method of each job of a seed; ``teachers`` are the names of the jobs that teach."""
        yield None, None

    def check(self, config: Config, teachers: list[str]) -> None:
        """Raise :class:`ConfigError` if a job of this kind needs what the experiment lacks."""
        return

    def images(self, images: ImageData) -> ImageData:
        """Return ``images`` as the networks learn from them: ``data.student_size`` of them for students, for example.

        Of what it returns it returns the same.
        """
        return images.of_students or images if self.exports_student else images.of_teachers()

    def trains(self, config: Config) -> bool:
        """Return whether the job trains its network; if not, it measures one, see :meth:`measured`."""
        return True

    def ema(self, config: Config) -> EmaConfig | None:
        """Return the settings of the average that the job keeps of its network's weights; None if it keeps none."""
        return config.ema.of(teacher=self.teaches) if self.trains(config) else None

    @abstractmethod
    def networks(self, config: Config) -> tuple[str, ...]:
        """Return the names of the networks that learn; the last one is exported."""

    @abstractmethod
    def starts(self, config: Config) -> tuple[Role, ...]:
        """Return which networks of the configuration begin in a job of this kind, new or with published weights."""

    def needs(self, config: Config, job: Job) -> set[str]:
        """Return the names of the jobs of the same seed that must finish first, if the experiment has them."""
        return self.learns_from(config, job)

    def learns_from(self, config: Config, job: Job) -> set[str]:
        """Return the names of the jobs of the same seed whose networks change what this job computes."""
        return set()

    def parts_read(self, config: Config, job: Job) -> tuple[str, ...]:
        """Return the folders, in those of the jobs that it learns from, that a job reads beside their networks."""
        return ()

    def lacks(self, config: Config, result: dict[str, Any]) -> str | None:
        """Return the folder that others read and that a finished job, of this ``result``, did not save; None if it did.

        The job then resumes where nothing is left to train, and saves it.
        """
        return None

    def compared_with(self, job: Job) -> str | None:
        """Return the name of the job whose network the exported one is compared with."""
        return None

    def initial_file(self, config: Config) -> tuple[str, str] | None:
        """Return key and value of the setting that names a file of weights to start from, if it is set."""
        return None

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """Return what decides the result beside network, data and training settings, in JSON's types."""
        return {}

    @abstractmethod
    def describe(self, config: Config, job: Job) -> str:
        """Return the job in a few words."""

    def failure(self, config: Config, job: Job, data: str) -> str:
        """Return the words for a job that can't learn on the images ``data``."""
        return f"{' and '.join(self.networks(config))} can't be trained on {data}"

    def measured(self, runner: JobRunner) -> tuple[str, StagedNet]:
        """Return the network of a job that trains none, and where it is from."""
        key, file = self.initial_file(runner.config) or ("", "")
        return file, runner.load(key, file)

    @abstractmethod
    def build_task(self, runner: JobRunner) -> Task:
        """Return the task that the job trains. Says how stages are paired."""

    def end_of_epoch(self, runner: JobRunner, task: Task) -> EndOfEpoch | None:
        """Return what to call after each epoch, or None."""
        return None

    def extra_figures(self, runner: JobRunner, task: Task) -> dict[str, Any]:
        """Return figures for ``result.json`` that other kinds don't have."""
        return {}
