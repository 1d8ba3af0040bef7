"""Which networks are trained, in what order, from what; and what is done already.

An experiment runs its stages once for each seed: a standard teacher, a student-friendly one (SFTN), the student alone,
and the student distilled from each teacher. Every stage has a folder of its own; one with a ``result.json`` that was
made by the same configuration is finished and not trained again.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from sftn_fast import cli, data, engine, models
from sftn_fast.config import Config, ConfigError, check
from sftn_fast.data import ImageData
from sftn_fast.engine import distributed
from sftn_fast.experiment import job_state, pool, resume
from sftn_fast.experiment.eta import TimeEstimate
from sftn_fast.experiment.job_state import JobState
from sftn_fast.experiment.labels import label
from sftn_fast.experiment.plan import Job, networks_of, places, plan
from sftn_fast.experiment.settings import read_settings
from sftn_fast.experiment.trial_step import try_stages
from sftn_fast.experiment.worker import Worker
from sftn_fast.models.imagenet import require_torchvision
from sftn_fast.utils import launcher, plugins, run_files
from sftn_fast.utils.atomic import replace_files, write_atomically
from sftn_fast.utils.checksummed import DamagedError, read_sealed_text, seal_text
from sftn_fast.utils.progress import duration

logger = logging.getLogger(__name__)


def run(config: Config, *, report: Callable[[Path], str]) -> None:
    """Run the whole experiment, print its report and export the student.

    ``report`` writes the report of the run's folder and returns it as text.

    Where torchrun started this process it is one of several that do so together, see :mod:`sftn_fast.engine`.

    Raises :class:`ConfigError` for what the user can mend, :class:`sftn_fast.engine.Interrupted` after a signal.
    """
    if launcher.restarts() and config.resume == "never":
        # The run in the folder is this one, which the launcher started anew.
        config = dataclasses.replace(config, resume="auto")
    with engine.process_group(config.engine.device):
        folder = engine.RunFolder(config.output)
        config, source, stages, devices, worker, standings = prepare(config, folder.path)
        with folder as root:
            if source is not None:
                distributed.say(f"goes on from a copy of {source}")
                distributed.on_main(partial(resume.copy, source, root))
            distributed.on_main(partial(resume.clean_up, root))
            distributed.on_main(partial(job_state.replace_differing, standings, root))
            distributed.on_main(partial(_write_settings, config, stages, root))
            _say_batch(config)
            _say_loader(config)
            announce = partial(_announce, config, stages, TimeEstimate(config, stages, root, processes=len(devices)))
            if worker is None:
                pool.run(config, stages, root, devices, lock=folder.fileno(), announce=announce)
            else:
                _run_here(worker, stages, announce)
            distributed.on_main(partial(_conclude, stages, root, report))


class Prepared(NamedTuple):
    """An experiment that has all it needs."""

    config: Config
    """Where ``resume`` is what the stages are to do."""
    source: Path | None
    """Folder of another run, to be copied before the stages begin."""
    stages: list[Job]
    devices: list[torch.device]
    worker: Worker | None
    """What runs the stages in this process, unless several processes are to run them."""
    standings: dict[Job, JobState]
    """What there is of each stage already, where there is any."""


def prepare(config: Config, root: Path) -> Prepared:
    """Check all that can be checked before anything is trained or written; ``root`` is where the run will write.

    Raises :class:`ConfigError` for what the user can mend.
    """
    source = distributed.on_main(partial(resume.source_of, config, root))
    config = resume.with_stages_going_on(config)
    stages, devices = distributed.on_every_rank(partial(_checked_plan, config))
    distributed.on_main(partial(_check_files, config, stages, source or root))
    worker = worker_on(devices[0], config, root) if len(devices) == 1 else None
    images_of = worker.images_of if worker else partial(_images_to_look_at, config)
    _check_fit(config, stages, source or root, images_of)
    _try_stages(config, stages, images_of)
    standings: dict[Job, JobState] = {}
    if distributed.on_main(partial(_has_any, stages, source or root)):
        images = images_of(stages[0].seed)
        standings = distributed.on_main(partial(job_state.survey, config, stages, source or root, images))
    return Prepared(config, source, stages, devices, worker, standings)


def _has_any(stages: list[Job], root: Path) -> bool:
    return any(stage.folder(root).exists() for stage in stages)


def _checked_plan(config: Config) -> tuple[list[Job], list[torch.device]]:
    """Stages and devices of a configuration that has all it needs."""
    plugins.load(config.plugins)
    cli.check_distill(config)
    stages = plan(config)
    _check_networks(config)
    _check_packages()
    ranks = distributed.world_size()
    check(ranks == 1 or config.devices == 1, "devices", config.devices, f"1 where torchrun starts {ranks} processes")
    devices = engine.resolve_devices(config.devices, config.engine.device)
    return stages, devices


def _write_settings(config: Config, stages: list[Job], root: Path) -> None:
    """Write the configuration, before the first of its stages is trained, when none of other settings is left.

    Where all are finished, what is there stays: it is the configuration that they were trained with.
    """
    path = root / "config.yaml"
    if path.exists():
        try:
            read_sealed_text(path)
        except DamagedError as error:
            logger.warning("%s; written again", error)
    known = places(read_settings(root)) or set()
    if all(stage.is_finished(root) and stage.place in known for stage in stages):
        return
    # Not how this start was to go on: who trains by the file has not asked for that.
    write_atomically(path, seal_text(cli.dump(dataclasses.replace(config, resume="auto"))))


def _conclude(stages: list[Job], root: Path, report: Callable[[Path], str]) -> None:
    """Write what closes a run."""
    print(f"\n{report(root)}", end="")
    _export_student(stages, root)


def _say_batch(config: Config) -> None:
    """How a step is divided, if it is."""
    ranks, images, parts = distributed.world_size(), config.optim.batch_size, config.optim.accumulate
    if ranks * parts > 1:
        whole = f"{ranks} rank{'s' * (ranks > 1)}, {images} images a step, {images // ranks} a rank"
        distributed.say(whole + f" in {parts} parts" * (parts > 1))


def _say_loader(config: Config) -> None:
    """Who decodes the images, where that goes on for the whole run."""
    line = data.describe_loader(config.data)
    if line:
        distributed.say(line)


def worker_on(device: torch.device, config: Config, root: Path) -> Worker:
    """What runs stages in this process, on ``device``."""
    on_device = dataclasses.replace(config.engine, device=str(device))
    return Worker(dataclasses.replace(config, devices=1, engine=on_device), root)


def _run_here(worker: Worker, stages: list[Job], announce: Callable[[Job, str], None]) -> None:
    """One stage after the other in this process."""
    for stage in stages:
        announce(stage, str(worker.device))
        worker.run(stage)


def _announce(config: Config, stages: list[Job], outlook: TimeEstimate, stage: Job, device: str) -> None:
    number, seconds = stages.index(stage) + 1, outlook.begin(stage) if distributed.is_main() else None
    where = device if distributed.world_size() == 1 else f"{distributed.world_size()} ranks"
    left = f"; {duration(seconds)} left in all" if seconds else ""
    distributed.say(f"\n[{number}/{len(stages)}] seed {stage.seed}: {describe(config, stage)}, on {where}{left}")


def _check_networks(config: Config) -> None:
    cli.check_networks(config, models.names())
    for key, name in cli.networks_in(config):
        try:
            require_torchvision(name)
        except ImportError as error:
            raise ConfigError(f"{key}: {error}") from error


def _try_stages(config: Config, stages: list[Job], images_of: Callable[[int], ImageData]) -> None:
    """Train each kind of stage for a step, so that what can't learn is refused before its teachers are trained."""
    images = images_of(stages[0].seed)
    for line in distributed.on_every_rank(partial(try_stages, config, stages, images)):
        distributed.say(line)


def _images_to_look_at(config: Config, seed: int) -> ImageData:
    """The images where the processes that train have their own."""
    return data.build(config.data, seed=seed, batch_size=config.optim.batch_size, device=torch.device("cpu"))


def _check_files(config: Config, stages: list[Job], root: Path) -> None:
    """Miss a network that a stage is to begin with before another one is trained."""
    for key, path in _files_to_begin_with(config, stages, root):
        try:
            models.require_weights(path, config.teacher)
        except (OSError, ImportError, models.WeightsError) as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_fit(config: Config, stages: list[Job], root: Path, images_of: Callable[[int], ImageData]) -> None:
    """Load what a stage is to begin with, so that a file that does not fit is refused before a network is trained."""
    for key, path in _files_to_begin_with(config, stages, root):
        images = images_of(stages[0].seed)
        distributed.on_every_rank(partial(_try_file, config, key, path, images))


def _try_file(config: Config, key: str, path: str, images: ImageData) -> None:
    network = models.build(config.teacher, num_classes=images.num_classes, in_channels=images.in_channels)
    try:
        models.load_weights(network, path, keep_head=key == "sftn.init", say=lambda _: None)
    except (OSError, models.WeightsError) as error:
        raise ConfigError(f"{key}: {error}") from error


def _files_to_begin_with(config: Config, stages: list[Job], root: Path) -> list[tuple[str, str]]:
    """Keys of the configuration and the files that they name, where a stage still needs them."""
    init = None if config.sftn.init == "teacher" else config.sftn.init
    found = []
    for key, path, kind in (("teacher_file", config.teacher_file, "teacher"), ("sftn.init", init, "sftn")):
        wanted = [stage for stage in stages if stage.kind == kind]
        if path and not all(stage.is_finished(root) for stage in wanted):  # else its origin is needed no more
            found.append((key, path))
    return found


def _check_packages() -> None:
    """Miss what the end of a run needs at its beginning."""
    try:
        models.weights.safetensors()
    except ImportError as error:
        raise ConfigError(str(error)) from error


def describe(config: Config, stage: Job) -> str:
    """The stage in a few words."""
    teacher = "SFTN" if stage.source == "sftn" else "standard"
    return {
        "teacher": f"standard teacher {config.teacher}",
        "sftn": f"student-friendly teacher {config.teacher} for {config.student}",
        "student": f"student {config.student} alone",
        "distill": f"student {config.student} by {stage.method or config.distill} from {teacher} teacher",
        "collaborate": f"{' and '.join(networks_of(config))} together by {config.collaborate.method}",
    }[stage.kind]


def _export_student(stages: list[Job], root: Path) -> None:
    """Put the student that the experiment is about where it is easy to find: the last kind of student, first seed."""
    students = [stage for stage in stages if stage.kind in ("student", "distill", "collaborate")]
    if not students:
        return
    wanted = students[-1].name
    chosen = next(stage for stage in students if stage.name == wanted)
    target = root / run_files.STUDENT
    try:
        contents = models.read_files(chosen.folder(root))
    except (OSError, models.WeightsError) as error:
        raise DamagedError(f"{target} is left as it is: {error}") from error
    if _differs(target, contents):
        replace_files(target, contents)
    print(f"exported student ({label(wanted)}, seed {chosen.seed}): sftn_fast.models.load({str(target)!r})")


def _differs(target: Path, contents: dict[str, bytes]) -> bool:
    """Whether the exported student is to be written; a damaged one is named."""
    if not target.exists():
        return True
    try:
        return models.read_files(target) != contents
    except (OSError, models.WeightsError) as error:
        logger.warning("the exported student is damaged: %s; exported again", error)
        return True
