"""The student that a run exports: which job's it is, and its copy in ``student/``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sftn_fast import models
from sftn_fast.config import check
from sftn_fast.experiment.job_state import JobState
from sftn_fast.experiment.labels import label
from sftn_fast.experiment.plan import Job
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import replace_files
from sftn_fast.utils.checksummed import DamagedError, read_sealed
from sftn_fast.utils.derived_files import discard

logger = logging.getLogger(__name__)


def exported_job(jobs: Sequence[Job]) -> Job | None:
    """Return the job whose student the experiment is about: the last one, for the first seed."""
    students = [job for job in jobs if job.behaviour.exports_student]
    return next((job for job in students if job.name == students[-1].name), None)


def require_best(jobs: Sequence[Job], root: Path, states: Mapping[Job, JobState]) -> None:
    """Raise :class:`ConfigError` if the student to be exported is finished and its best epoch was not kept."""
    job = exported_job(jobs)
    if job is None or job not in states or not states[job].kept:
        return
    files = read_sealed(job.folder(root) / run_files.RESULT).get(run_files.FILES, {})
    kept = f"{run_files.BEST}/{run_files.NETWORK[0]}" in files
    allowed = f"last for {job.place} in {root}, which an earlier version trained without keeping its best epoch"
    check(kept, "export", "best", allowed)


FOLDERS = {"last": ".", "best": run_files.BEST, "ema": run_files.EMA}
"""Folders in a job's folder with the weights that ``export`` may name."""


def export_student(job: Job, root: Path, weights: str) -> str:
    """Copy the student of ``job`` with the ``weights`` that ``export`` names; return a line that tells what it is."""
    target, source = root / run_files.STUDENT, job.folder(root)
    try:
        contents = models.read_files(source / FOLDERS[weights])
    except (OSError, models.WeightsError) as error:
        raise DamagedError(f"{target} is left unchanged: {error}") from error
    discard(target, contents)
    if _differs(target, contents):
        replace_files(target, contents)
    which = f", epoch {models.read_config(target)['meta']['epoch']}, the best one" if weights == "best" else ""
    which = ", the average of its weights" if weights == "ema" else which
    return f"exported student ({label(job.name)}, seed {job.seed}{which}): sftn_fast.models.load({str(target)!r})"


def _differs(target: Path, contents: dict[str, bytes]) -> bool:
    """Return whether the exported student has to be written. A damaged one is named."""
    if not target.exists():
        return True
    try:
        return models.read_files(target) != contents
    except (OSError, models.WeightsError) as error:
        logger.warning("the exported student is damaged: %s; exported again", error)
        return True
