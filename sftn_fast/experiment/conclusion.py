"""The end of a run: its report, its exported student, images to try the student on, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sftn_fast.config import Config
from sftn_fast.experiment import service_runs
from sftn_fast.experiment.exported_student import export_student, exported_job
from sftn_fast.experiment.plan import Job
from sftn_fast.loggers import Services
from sftn_fast.utils import program, run_files
from sftn_fast.utils.atomic import write_atomically


def conclude(
    config: Config,
    jobs: Sequence[Job],
    root: Path,
    report: Callable[[Path], str],
    samples: Mapping[str, bytes],
    services: Services,
) -> None:
    """Export the student, print the report, which tells of it, and say how to use it.

    Args:
        config: Of the experiment.
        jobs: All jobs, finished.
        root: The run's folder.
        report: Writes the report of the folder and returns it as text.
        samples: Image files to try the student on, by name. Without any, the user's own have to do.
        services: Receive the results of the whole run.
    """
    job, line = exported_job(jobs), None
    try:
        if job is not None:
            line = export_student(job, root, config.export)
    finally:
        print(f"\n{report(root)}", end="")
    service_runs.log_summary(config, jobs, root, services)
    if line is not None:
        image = _write_samples(samples, root)
        print(f"{line}\n\nnext: {_predict_command(config, root / run_files.STUDENT, image)}")


def _write_samples(samples: Mapping[str, bytes], root: Path) -> Path | None:
    """Write the image files into ``samples/``, beside what else is there, and return the first one."""
    folder = root / run_files.SAMPLES
    for name, content in samples.items():
        folder.mkdir(exist_ok=True)
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:
            write_atomically(folder / name, content)
    return folder / next(iter(samples)) if samples else None


def _predict_command(config: Config, student: Path, image: Path | None) -> str:
    """Return the command that classifies ``image``, or an image of the user's, by the exported student."""
    words = [*program.name_of("predict").split(), str(student), str(image or "IMAGE")]
    return shlex.join([*words, "--plugins", *config.plugins] if config.plugins else words)
