"""Networks that learn together, each from the predictions of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from sftn_fast import cli
from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment.kinds.base import Contents, Kind, Role

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.experiment.plan import Job
    from sftn_fast.tasks import CollaborativeTask, Task


class Collaborate(Kind):
    """Peers that learn together; the last one is exported."""

    name = "collaborate"
    labels: ClassVar = {"collaborate": "student among peers"}
    exports_student = True

    def check(self, config: Config, teachers: list[str]) -> None:
        """See :meth:`Kind.check`."""
        if config.collaborate.init not in (None, *teachers):
            raise ConfigError(f"collaborate.init={config.collaborate.init} needs that stage")

    def networks(self, config: Config) -> tuple[str, ...]:
        """See :meth:`Kind.networks`."""
        return config.collaborate.networks or (config.teacher, config.student)

    def starts(self, config: Config) -> tuple[Role, ...]:
        """See :meth:`Kind.starts`."""
        if config.collaborate.networks:
            return ()
        return ("student",) if config.collaborate.init else ("teacher", "student")

    def learns_from(self, config: Config, job: Job) -> set[str]:
        """See :meth:`Kind.learns_from`."""
        return {config.collaborate.init} if config.collaborate.init else set()

    def identity(self, config: Config, job: Job, contents: Contents) -> dict[str, Any]:
        """See :meth:`Kind.identity`."""
        identity = {"collaborate": cli.to_dict(config)["collaborate"], "networks": list(self.networks(config))}
        init = config.collaborate.init
        return identity | ({"init": contents.of_trained(init)} if init else {})

    def describe(self, config: Config, job: Job) -> str:
        """See :meth:`Kind.describe`."""
        return f"{' and '.join(self.networks(config))} together by {config.collaborate.method}"

    def build_task(self, runner: JobRunner) -> Task:
        """See :meth:`Kind.build_task`."""
        from sftn_fast.tasks import CollaborativeTask

        config = runner.config.collaborate
        first = runner.finished(config.init) if config.init else None
        if config.networks:
            built = [runner.build(name) for name in config.networks]
            networks = built if first is None else [first, *built[1:]]
        else:
            networks = [first or runner.start("teacher"), runner.start("student")]
        return CollaborativeTask(networks, config)

    def extra_figures(self, runner: JobRunner, task: Task) -> dict[str, Any]:
        """See :meth:`Kind.extra_figures`."""
        from sftn_fast.experiment.peers import evaluate_peers

        return {"peers": evaluate_peers(runner, cast("CollaborativeTask", task))}
