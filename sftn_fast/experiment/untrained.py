"""A runner of jobs for trying them: untrained networks replace those of other jobs and those with published weights."""

from __future__ import annotations

from sftn_fast.experiment.job import JobRunner
from sftn_fast.experiment.kinds.base import Role
from sftn_fast.models import StagedNet


class UntrainedRunner(JobRunner):
    """Builds the task of a job without reading what others have trained."""

    def start(self, role: Role) -> StagedNet:
        """Return a new network, also in place of one with published weights."""
        return self.build(getattr(self.config, role))

    def finished(self, name: str) -> StagedNet:
        """Return an untrained teacher."""
        return self.build(self.config.teacher)

    def start_as_branch(self, student: StagedNet, teacher: str) -> None:
        """Leave the student as it is: nothing has trained a branch."""
