"""The earliest branch of a student-friendly teacher, from which its students may start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sftn_fast.config import Config
from sftn_fast.utils import run_files

if TYPE_CHECKING:
    from sftn_fast.experiment.job import JobRunner
    from sftn_fast.models import StagedNet
    from sftn_fast.tasks import SFTNTask, Task


def is_wanted(config: Config) -> bool:
    """Return whether the students of the student-friendly teacher start from its branch."""
    return config.sftn.init_student and "distill" in config.stages


def is_saved(result: dict[str, Any]) -> bool:
    """Return whether a finished teacher, of this ``result``, saved its branch, which earlier versions did not."""
    return f"{run_files.BRANCH}/{run_files.NETWORK[0]}" in result.get(run_files.FILES, {})


def save(runner: JobRunner, task: Task) -> None:
    """Save the student's stages and head in the earliest branch, as they are now. All ranks have to call this."""
    from sftn_fast import models
    from sftn_fast.engine import distributed

    def write() -> None:
        entry, weights = cast("SFTNTask", task).student_aware.earliest_branch()
        about = {"teacher_stage": entry.teacher_stage, "entry": entry.place}
        files = models.to_files(runner.build(runner.config.student), weights=weights, meta=about)
        runner.write_network(run_files.BRANCH, files)

    distributed.on_main(write)


def load(student: StagedNet, folder: Path) -> str:
    """Copy the branch in ``folder``, that of a finished teacher, into ``student``; leave its other stages as they are.

    Returns:
        A line that says what was copied.

    Raises:
        OSError, WeightsError: The branch is missing or damaged, or of another student.
    """
    from sftn_fast import models
    from sftn_fast.models.weights import assign, safetensors

    weights_file, config_file = run_files.NETWORK
    branch = folder / run_files.BRANCH
    files = models.read_files(branch)
    weights, about = safetensors().load(files[weights_file]), json.loads(files[config_file])["meta"]
    own = {name: tensor for name, tensor in student.state_dict().items() if name not in weights}
    assign(student, {**own, **weights}, branch)
    return f"starts as the branch on teacher stage {about['teacher_stage']}, from the {about['entry']} on"
