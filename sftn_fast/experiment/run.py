"""An experiment from its configuration to the exported student.

For each seed it trains a standard teacher, a student-friendly one (SFTN), the student alone, and the student distilled
from each teacher. Every job has a folder of its own. A job whose ``result.json`` was made with the same settings is
finished and not trained again.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from sftn_fast import cli, data, engine, loggers, models
from sftn_fast.config import ALL_METHODS, Config, ConfigError, check
from sftn_fast.data import ImageData
from sftn_fast.distillers.normal_form import refuse_equal
from sftn_fast.engine import distributed
from sftn_fast.engine.optimizer_classes import check_optimizer, check_weight_decay
from sftn_fast.experiment import every_method, job_state, networks, pool, resume, service_runs
from sftn_fast.experiment.conclusion import conclude
from sftn_fast.experiment.eta import TimeEstimate
from sftn_fast.experiment.exported_student import require_best
from sftn_fast.experiment.fork_server import ForkServer
from sftn_fast.experiment.job_state import JobState
from sftn_fast.experiment.plan import Job, places, plan
from sftn_fast.experiment.settings import read_settings
from sftn_fast.experiment.trial_step import try_jobs
from sftn_fast.experiment.worker import Worker
from sftn_fast.loggers import Services
from sftn_fast.models.imagenet import require_torchvision
from sftn_fast.models.timm_networks import require_timm
from sftn_fast.utils import launcher, plugins, safe_yaml
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, read_sealed_text, seal_text
from sftn_fast.utils.foreign_files import refuse_foreign_files
from sftn_fast.utils.progress import duration

logger = logging.getLogger(__name__)


def run(config: Config, *, report: Callable[[Path], str], server: ForkServer | None = None) -> None:
    """Run the whole experiment, print its report and export the student.

    If torchrun started this process, several run the experiment together, see :mod:`sftn_fast.engine`.

    Args:
        config: Of the experiment.
        report: Called with the run's folder; writes its report and returns it as text.
        server: Forks the processes that run jobs side by side on the CPU.

    Raises:
        ConfigError: For what the user can fix.
        Interrupted: After a signal, once a checkpoint is saved.
    """
    if launcher.restarts() and config.resume == "never":
        # The launcher restarted this run, so the run in the folder is its own.
        config = dataclasses.replace(config, resume="auto")
    with engine.process_group(config.engine.device):
        folder = engine.RunFolder(config.output)
        config, source, jobs, devices, worker, states = prepare(config, folder.path)
        with folder as root:
            if source is not None:
                distributed.say(f"resumes a copy of {source}")
                distributed.on_main(partial(resume.copy, source, root))
            for line in distributed.on_main(partial(loggers.prepare, config.logger, root)):
                distributed.say(line)
            distributed.on_main(partial(resume.clean_up, root))
            distributed.on_main(partial(job_state.replace_differing, states, root))
            distributed.on_main(partial(_write_settings, config, jobs, root))
            _say_batch(config)
            _say_loader(config)
            if sum(state.kept for state in states.values()) < len(jobs):
                say_precision(config, devices)
            samples = _samples(config, jobs, worker)
            estimate = TimeEstimate(config, jobs, root, processes=len(devices))
            announce = partial(_announce, config, jobs, estimate)
            if worker is None:
                pool.run(config, jobs, root, devices, lock=folder.fileno(), announce=announce, server=server)
            else:
                _run_here(worker, jobs, announce)
            services = worker.services if worker else Services(service_runs.names(config))
            distributed.on_main(partial(conclude, config, jobs, root, report, samples, services))


class Prepared(NamedTuple):
    """An experiment that is ready to run."""

    config: Config
    """The configuration, with ``resume`` as the jobs need it."""
    source: Path | None
    """Folder of another run, to be copied before the jobs begin."""
    jobs: list[Job]
    devices: list[torch.device]
    worker: Worker | None
    """Runs the jobs in this process; None if several processes run them."""
    states: dict[Job, JobState]
    """State of each job, if the folder holds any."""


def prepare(config: Config, root: Path) -> Prepared:
    """Check everything that can be checked before anything is trained or written to ``root``.

    Raises:
        ConfigError: For what the user can fix.
    """
    distributed.on_main(partial(refuse_foreign_files, root))
    source = distributed.on_main(partial(resume.source_of, config, root))
    distributed.on_main(partial(loggers.check, config.logger, root))
    config = resume.for_jobs(config)
    distributed.on_every_rank(partial(_check_names, config))
    if "distill" in config.stages and ALL_METHODS in config.methods:
        images = _images_to_look_at(config, config.seeds[0])
        config, lines = distributed.on_every_rank(partial(every_method.expand, config, images))
        for line in lines:
            distributed.say(line)
    jobs, devices = distributed.on_every_rank(partial(_checked_plan, config))
    distributed.on_main(partial(_require_files, config, jobs, source or root))
    worker = worker_on(devices[0], config, root) if len(devices) == 1 else None
    images_of = worker.images_of if worker else partial(_images_to_look_at, config)
    _check_files(config, jobs, source or root, images_of)
    _try_jobs(config, jobs, images_of)
    states: dict[Job, JobState] = {}
    if distributed.on_main(partial(_has_any, jobs, source or root)):
        images = images_of(jobs[0].seed)
        states = distributed.on_main(partial(job_state.survey, config, jobs, source or root, images))
    if config.export == "best":
        distributed.on_main(partial(require_best, jobs, source or root, states))
    return Prepared(config, source, jobs, devices, worker, states)


def _has_any(jobs: list[Job], root: Path) -> bool:
    return any(job.folder(root).exists() for job in jobs)


def _check_names(config: Config) -> None:
    """Raise :class:`ConfigError` for a name that doesn't exist, or a package that is missing."""
    plugins.load(config.plugins)
    cli.check_distill(config)
    check_optimizer(config.optim)
    if "sftn" in config.stages:
        check_weight_decay("sftn.branch_weight_decay", config.sftn.branch_weight_decay, config.optim)
    _check_networks(config)
    _check_packages()


def _checked_plan(config: Config) -> tuple[list[Job], list[torch.device]]:
    """Return jobs and devices of a configuration."""
    jobs = plan(config)
    refuse_equal(each for each in config.methods if each != ALL_METHODS)
    _check_starts(config, jobs)
    ranks = distributed.world_size()
    check(ranks == 1 or config.devices == 1, "devices", config.devices, f"1 where torchrun starts {ranks} processes")
    devices = engine.resolve_devices(config.devices, config.engine.device)
    # A process of the pool inherits its pipe and the folder's lock as file descriptors.
    side_by_side = len(devices) == 1 or sys.platform != "win32"
    check(side_by_side, "devices", config.devices, "one device on Windows, where jobs run one after the other")
    return jobs, devices


def _write_settings(config: Config, jobs: list[Job], root: Path) -> None:
    """Write the configuration before the first job is trained, once nothing of other settings is left.

    If all jobs are finished, the existing file stays: it is the configuration that they were trained with. Only
    ``export`` is changed in it.
    """
    path = root / "config.yaml"
    if path.exists():
        try:
            read_sealed_text(path)
        except DamagedError as error:
            logger.warning("%s; written again", error)
    known = places(read_settings(root)) or set()
    if all(job.is_finished(root) and job.place in known for job in jobs):
        _write_export(config, path)
        return
    # Without this start's --resume, which somebody who trains by the file has not asked for.
    write_atomically(path, seal_text(cli.dump(dataclasses.replace(config, resume="auto"))))


def _write_export(config: Config, path: Path) -> None:
    """Change ``export`` in an existing ``config.yaml``, whose other settings are those of the training."""
    settings = safe_yaml.load(read_sealed_text(path), str(path))
    if settings.get("export", "last") != config.export:
        write_atomically(path, seal_text(safe_yaml.dump(settings | {"export": config.export})))


def _say_batch(config: Config) -> None:
    """Print how a step is divided, if it is."""
    ranks, images, parts = distributed.world_size(), config.optim.batch_size, config.optim.accumulate
    if ranks * parts > 1:
        whole = f"{ranks} rank{'s' * (ranks > 1)}, {images} images a step, {images // ranks} a rank"
        distributed.say(whole + f" in {parts} parts" * (parts > 1))


def _say_loader(config: Config) -> None:
    """Print which loader decodes the images, if they are decoded throughout the run."""
    line = data.describe_loader(config.data)
    if line:
        distributed.say(line)


def say_precision(config: Config, devices: Sequence[torch.device]) -> None:
    """Print a line if another precision is likely to be faster on the CPU."""
    if all(device.type != "cpu" for device in devices):
        return
    if config.engine.amp == "fp16":
        distributed.say("warning: engine.amp fp16 is slow on a CPU; fp32 is faster there")
    instructions = engine.bfloat16_instructions()
    if config.engine.amp == "fp32" and instructions:
        gain = "2 to 3 times" if instructions == "AMX" else "up to twice"
        offer = f"--engine.amp bf16 may be {gain} as fast, unless the images are tiny"
        distributed.say(f"this CPU multiplies bfloat16 ({instructions}): {offer}")


def worker_on(device: torch.device, config: Config, root: Path) -> Worker:
    """Return a worker that runs jobs in this process, on ``device``."""
    on_device = dataclasses.replace(config.engine, device=str(device))
    return Worker(dataclasses.replace(config, devices=1, engine=on_device), root)


def _run_here(worker: Worker, jobs: list[Job], announce: Callable[[Job, str], None]) -> None:
    """Run one job after the other in this process."""
    for job in jobs:
        announce(job, str(worker.device))
        worker.run(job)


def _announce(config: Config, jobs: list[Job], estimate: TimeEstimate, job: Job, device: str) -> None:
    number, seconds = jobs.index(job) + 1, estimate.begin(job) if distributed.is_main() else None
    where = device if distributed.world_size() == 1 else f"{distributed.world_size()} ranks"
    left = f"; {duration(seconds)} left in all" if seconds else ""
    what = job.behaviour.describe(config, job)
    distributed.say(f"\n[{number}/{len(jobs)}] seed {job.seed}: {what}, on {where}{left}")


def _check_networks(config: Config) -> None:
    cli.check_networks(config, models.names())
    for key, name in cli.networks_in(config):
        try:
            require_torchvision(name)
            require_timm(name)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_starts(config: Config, jobs: list[Job]) -> None:
    """Raise :class:`ConfigError` if a network is to start from published weights, and no job begins with it."""
    begun = {role for job in jobs for role in job.behaviour.starts(config)}
    for role in ("teacher", "student"):
        if networks.pretrained(config, role) and role not in begun:
            raise ConfigError(f"{role}_pretrained must be false where no stage trains a new {role}, got True")


def _try_jobs(config: Config, jobs: list[Job], images_of: Callable[[int], ImageData]) -> None:
    """Train each kind of job for a step, to refuse what can't learn before its teachers are trained."""
    images = images_of(jobs[0].seed)
    for line in distributed.on_every_rank(partial(try_jobs, config, jobs, images)):
        distributed.say(line)


def _images_to_look_at(config: Config, seed: int) -> ImageData:
    """Return images for the checks, if the processes that train have their own."""
    return data.build(config.data, seed=seed, batch_size=config.optim.batch_size, device=torch.device("cpu"))


def _samples(config: Config, jobs: list[Job], worker: Worker | None) -> dict[str, bytes]:
    """Return image files to try the student on; none if images are decoded on demand."""
    if config.data.streams:
        return {}
    seed = jobs[0].seed  # the worker holds this seed's images since the checks
    return data.sample_files(worker.images_of(seed) if worker else _images_to_look_at(config, seed))


def _require_files(config: Config, jobs: list[Job], root: Path) -> None:
    """Raise :class:`ConfigError` for a missing file of weights, before anything is read or trained."""
    for key, path in _initial_files(config, jobs, root):
        try:
            models.require_weights(path, networks.name_of(config, key))
        except (OSError, ImportError, models.WeightsError) as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_files(config: Config, jobs: list[Job], root: Path, images_of: Callable[[int], ImageData]) -> None:
    """Load the files of weights, to refuse one that doesn't fit before a network is trained."""
    for key, path in _initial_files(config, jobs, root):
        images = images_of(jobs[0].seed)
        distributed.on_every_rank(partial(_try_file, config, key, path, images))


def _try_file(config: Config, key: str, path: str, images: ImageData) -> None:
    networks.load(networks.name_of(config, key), key, path, images, lambda _: None)


def _initial_files(config: Config, jobs: list[Job], root: Path) -> list[tuple[str, str]]:
    """Return settings that name a file of weights, and the files, if an unfinished job starts from them."""
    unfinished = {job.kind: job.behaviour for job in jobs if not job.is_finished(root)}
    files = [behaviour.initial_file(config) for behaviour in unfinished.values()]
    started = dict.fromkeys(role for behaviour in unfinished.values() for role in behaviour.starts(config))
    return [file for file in (*files, *(networks.pretrained(config, role) for role in started)) if file]


def _check_packages() -> None:
    """Raise :class:`ConfigError` now if a package is missing that the end of a run needs."""
    try:
        models.weights.safetensors()
    except ImportError as error:
        raise ConfigError(str(error)) from error
