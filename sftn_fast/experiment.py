"""Which networks are trained, in what order, from what; and what is done already.

An experiment runs its stages once for each seed: a standard teacher, a student-friendly one (SFTN), the student alone,
and the student distilled from each teacher. Every stage has a folder of its own; one with a ``result.json`` that was
made by the same configuration is finished and not trained again.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from sftn_fast import cli, continuation, data, distillers, engine, launcher, models, plugins, report, schedule
from sftn_fast.atomic import write_atomically
from sftn_fast.config import Config, ConfigError, check
from sftn_fast.data import ImageData
from sftn_fast.engine import distributed
from sftn_fast.engine.progress import duration
from sftn_fast.models.imagenet import require_torchvision
from sftn_fast.outlook import Outlook
from sftn_fast.stage import Stage, networks_of
from sftn_fast.worker import Worker


def plan(config: Config) -> list[Stage]:
    """The stages in the order in which they run.

    Raises :class:`ConfigError` where a stage needs a teacher that the experiment does not have.
    """
    teachers: list[str] = [kind for kind in ("teacher", "sftn") if kind in config.stages]
    if config.teacher_file and "teacher" not in teachers:
        teachers.insert(0, "teacher")
    if "distill" in config.stages and not teachers:
        raise ConfigError(
            "stages must name teacher or sftn, or teacher_file a trained teacher, for distill to have one"
        )
    if config.sftn.init == "teacher" and "sftn" in teachers and "teacher" not in teachers:
        raise ConfigError("sftn.init=teacher needs the stage teacher, or a teacher_file")
    if "collaborate" in config.stages and config.collaborate.init not in (None, *teachers):
        raise ConfigError(f"collaborate.init={config.collaborate.init} needs that stage")
    if (config.route.anchors or config.route.epochs) and config.teacher_file:
        raise ConfigError("route needs a teacher of this run's own training, and teacher_file names another")
    stages = list(_stages(config, teachers))
    (folder, count), *_ = Counter((stage.seed, stage.name) for stage in stages).most_common(1)
    if count > 1:
        raise ConfigError(f"methods must differ from each other, got {list(config.methods)!r} ({folder[1]} twice)")
    return stages


def _stages(config: Config, teachers: list[str]) -> Iterator[Stage]:
    methods: tuple[str | None, ...] = config.methods or (None,)
    for seed in config.seeds:
        yield from (Stage(kind, seed) for kind in teachers)
        if "student" in config.stages:
            yield Stage("student", seed)
        if "distill" in config.stages:
            yield from (Stage("distill", seed, source, method) for method in methods for source in teachers)
        if "collaborate" in config.stages:
            yield Stage("collaborate", seed)


def run(config: Config) -> None:
    """Run the whole experiment, then print and write its report and export the student.

    Where torchrun started this process it is one of several that do so together, see :mod:`sftn_fast.engine`.

    Raises :class:`ConfigError` for what the user can mend, :class:`sftn_fast.engine.Interrupted` after a signal.
    """
    if launcher.restarts() and config.resume == "never":
        # The run in the folder is this one, which the launcher started anew.
        config = dataclasses.replace(config, resume="auto")
    with engine.process_group(config.engine.device):
        folder = engine.RunFolder(config.output)
        config, source, stages, devices, worker = prepare(config, folder.path)
        with folder as root:
            if source is not None:
                distributed.say(f"goes on from a copy of {source}")
                distributed.on_main(partial(continuation.copy, source, root))
            distributed.on_main(partial(_write_settings, config, root, anew=False))
            _say_batch(config)
            _say_loader(config)
            announce = partial(_announce, config, stages, Outlook(config, stages, root, processes=len(devices)))
            if worker is None:
                schedule.run(config, stages, root, devices, lock=folder.fileno(), announce=announce)
            else:
                _run_here(worker, stages, announce)
            distributed.on_main(partial(_conclude, config, stages, root))


class Prepared(NamedTuple):
    """An experiment that has all it needs."""

    config: Config
    """Where ``resume`` is what the stages are to do."""
    source: Path | None
    """Folder of another run, to be copied before the stages begin."""
    stages: list[Stage]
    devices: list[torch.device]
    worker: Worker | None
    """What runs the stages in this process, unless several processes are to run them."""


def prepare(config: Config, root: Path) -> Prepared:
    """Check all that can be checked before anything is trained or written; ``root`` is where the run will write.

    Raises :class:`ConfigError` for what the user can mend.
    """
    source = distributed.on_main(partial(continuation.source_of, config, root))
    config = continuation.with_stages_going_on(config)
    stages, devices = distributed.on_every_rank(partial(_checked_plan, config))
    distributed.on_main(partial(_check_files, config, stages, source or root))
    worker = worker_on(devices[0], config, root) if len(devices) == 1 else None
    _check_methods(config, stages, worker.images_of if worker else partial(_images_to_look_at, config))
    if worker is None and not any(stage.kind == "distill" for stage in stages):
        data.say_notices(config.data)  # as looking at the images has done otherwise
    return Prepared(config, source, stages, devices, worker)


def _checked_plan(config: Config) -> tuple[list[Stage], list[torch.device]]:
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


def _write_settings(config: Config, root: Path, *, anew: bool) -> None:
    settings = root / "config.yaml"
    if anew or not settings.exists():
        write_atomically(settings, cli.dump(config))


def _conclude(config: Config, stages: list[Stage], root: Path) -> None:
    """Write what closes a run."""
    # Not before every stage agreed: a run that is refused leaves the folder's configuration as it was.
    _write_settings(config, root, anew=True)
    print(f"\n{report.write(root)}", end="")
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


def _run_here(worker: Worker, stages: list[Stage], announce: Callable[[Stage, str], None]) -> None:
    """One stage after the other in this process."""
    for stage in stages:
        announce(stage, str(worker.device))
        worker.run(stage)


def _announce(config: Config, stages: list[Stage], outlook: Outlook, stage: Stage, device: str) -> None:
    number, seconds = stages.index(stage) + 1, outlook.begin(stage) if distributed.is_main() else None
    where = device if distributed.world_size() == 1 else f"{distributed.world_size()} ranks"
    left = f"; {duration(seconds)} left in all" if seconds else ""
    distributed.say(f"\n[{number}/{len(stages)}] seed {stage.seed}: {describe(config, stage)}, on {where}{left}")


def _check_networks(config: Config) -> None:
    given = [("teacher", config.teacher), ("student", config.student)]
    for key, name in (*given, *(("collaborate.networks", name) for name in config.collaborate.networks)):
        if name not in models.names():
            raise ConfigError(f"{key} must be one of {', '.join(models.names())}, got {name!r}")
        try:
            require_torchvision(name)
        except ImportError as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_methods(config: Config, stages: list[Stage], images_of: Callable[[int], ImageData]) -> None:
    """Build every distiller once, so that a method refuses its networks before their teachers are trained."""
    specs = list(dict.fromkeys(stage.method or config.distill for stage in stages if stage.kind == "distill"))
    if specs:
        distributed.on_every_rank(partial(_try_methods, config, specs, images_of(stages[0].seed)))


def _images_to_look_at(config: Config, seed: int) -> ImageData:
    """The images where the processes that train have their own."""
    return data.build(config.data, seed=seed, batch_size=config.optim.batch_size, device=torch.device("cpu"))


def _try_methods(config: Config, specs: list[str], images: ImageData) -> None:
    build = partial(models.build, num_classes=images.num_classes, in_channels=images.in_channels)
    student, teacher = build(config.student), build(config.teacher)
    for spec in specs:
        try:
            distillers.build(
                spec, student=student, teacher=teacher, num_samples=images.num_train, image_size=images.image_size
            )
        except ValueError as error:
            raise ConfigError(f"{spec!r} can't teach {config.student} from {config.teacher}: {error}") from error


def _check_files(config: Config, stages: list[Stage], root: Path) -> None:
    """Miss a network that a stage is to begin with before another one is trained."""
    init = None if config.sftn.init == "teacher" else config.sftn.init
    for key, path, kind in (("teacher_file", config.teacher_file, "teacher"), ("sftn.init", init, "sftn")):
        wanted = [stage for stage in stages if stage.kind == kind]
        if all(stage.is_finished(root) for stage in wanted):
            continue  # who has its result needs its origin no more
        try:
            if path:
                models.require_weights(path, config.teacher)
        except (OSError, ImportError, models.WeightsError) as error:
            raise ConfigError(f"{key}: {error}") from error


def _check_packages() -> None:
    """Miss what the end of a run needs at its beginning."""
    try:
        models.weights.safetensors()
    except ImportError as error:
        raise ConfigError(str(error)) from error


def describe(config: Config, stage: Stage) -> str:
    """The stage in a few words."""
    teacher = "SFTN" if stage.source == "sftn" else "standard"
    return {
        "teacher": f"standard teacher {config.teacher}",
        "sftn": f"student-friendly teacher {config.teacher} for {config.student}",
        "student": f"student {config.student} alone",
        "distill": f"student {config.student} by {stage.method or config.distill} from {teacher} teacher",
        "collaborate": f"{' and '.join(networks_of(config))} together by {config.collaborate.method}",
    }[stage.kind]


def _export_student(stages: list[Stage], root: Path) -> None:
    """Put the student that the experiment is about where it is easy to find: the last kind of student, first seed."""
    students = [stage for stage in stages if stage.kind in ("student", "distill", "collaborate")]
    if not students:
        return
    wanted = students[-1].name
    chosen = next(stage for stage in students if stage.name == wanted)
    target = root / "student"
    target.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(chosen.folder(root) / name, target / name)
    print(f"exported student ({report.label(wanted)}, seed {chosen.seed}): sftn_fast.models.load({str(target)!r})")
