"""Which networks are trained, in what order, from what; and what is done already.

An experiment runs its stages once for each seed: a standard teacher, a student-friendly one (SFTN), the student alone,
and the student distilled from each teacher. Every stage has a folder of its own; one with a ``result.json`` that was
made by the same configuration is finished and not trained again.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from sftn_fast import cli, data, distillers, engine, models, report, similarity
from sftn_fast.atomic import write_atomically
from sftn_fast.config import Config, ConfigError, OptimConfig
from sftn_fast.data import ImageData
from sftn_fast.distillers.method import Initialisation, InitTask
from sftn_fast.engine.fingerprint import FingerprintMismatch, differences
from sftn_fast.models import StagedNet
from sftn_fast.report import RESULT
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import DistillTask, SFTNTask, SupervisedTask, Task


@dataclass(frozen=True)
class Stage:
    """One network to train: a stage of the configuration, for one seed and, if it distils, from one teacher."""

    kind: str
    seed: int
    source: str | None = None

    @property
    def name(self) -> str:
        """Name of the stage's folder."""
        return f"{self.kind}-{self.source}" if self.source else self.kind


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
    return list(_stages(config, teachers))


def _stages(config: Config, teachers: list[str]) -> Iterator[Stage]:
    for seed in config.seeds:
        yield from (Stage(kind, seed) for kind in teachers)
        if "student" in config.stages:
            yield Stage("student", seed)
        if "distill" in config.stages:
            yield from (Stage("distill", seed, source) for source in teachers)


def run(config: Config) -> None:
    """Run the whole experiment, then print and write its report and export the student.

    Raises :class:`ConfigError` for what the user can mend, :class:`sftn_fast.engine.Interrupted` after a signal.
    """
    stages = plan(config)
    _check_networks(config)
    _check_packages()
    device = engine.resolve_device(config.engine.device)
    if config.engine.threads is not None:
        torch.set_num_threads(config.engine.threads)
    # One seed's images at a time: the stages come seed by seed, and read the same ones.
    images_of = lru_cache(maxsize=1)(partial(_build_data, config, device))
    with engine.RunFolder(config.output) as root:
        settings = root / "config.yaml"
        if not settings.exists():
            write_atomically(settings, cli.dump(config))
        for number, stage in enumerate(stages, start=1):
            print(f"\n[{number}/{len(stages)}] seed {stage.seed}: {_describe(config, stage)}", flush=True)
            StageRun(config, stage, root, device, images_of(stage.seed)).finish()
        # Not before every stage agreed: a run that is refused leaves the folder's configuration as it was.
        write_atomically(settings, cli.dump(config))
        print(f"\n{report.write(root)}", end="")
        _export_student(stages, root)


def _build_data(config: Config, device: torch.device, seed: int) -> ImageData:
    return data.build(config.data, seed=seed, batch_size=config.optim.batch_size, device=device)


def _check_networks(config: Config) -> None:
    for key in ("teacher", "student"):
        name = getattr(config, key)
        if name not in models.names():
            raise ConfigError(f"{key} must be one of {', '.join(models.names())}, got {name!r}")


def _check_packages() -> None:
    """Miss what the end of a run needs at its beginning."""
    try:
        models.weights.safetensors()
    except ImportError as error:
        raise ConfigError(str(error)) from error


def _describe(config: Config, stage: Stage) -> str:
    teacher = "SFTN" if stage.source == "sftn" else "standard"
    return {
        "teacher": f"standard teacher {config.teacher}",
        "sftn": f"student-friendly teacher {config.teacher} for {config.student}",
        "student": f"student {config.student} alone",
        "distill": f"student {config.student} by {config.distill} from {teacher} teacher",
    }[stage.kind]


def _export_student(stages: list[Stage], root: Path) -> None:
    """Put the student that the experiment is about where it is easy to find: the last kind of student, first seed."""
    students = [stage for stage in stages if stage.kind in ("student", "distill")]
    if not students:
        return
    wanted = students[-1].name
    chosen = next(stage for stage in students if stage.name == wanted)
    target = root / "student"
    target.mkdir(exist_ok=True)
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(root / f"seed{chosen.seed}" / chosen.name / name, target / name)
    print(f"exported student ({report.LABELS[wanted]}, seed {chosen.seed}): sftn_fast.models.load({str(target)!r})")


class StageRun:
    """One stage on its way from configuration to ``result.json``."""

    def __init__(self, config: Config, stage: Stage, root: Path, device: torch.device, images: ImageData) -> None:
        self.config, self.stage, self.device, self.data = config, stage, device, images
        self.seed_folder = root / f"seed{stage.seed}"
        self.folder = self.seed_folder / stage.name

    def finish(self) -> None:
        """Train the stage, unless that is done already."""
        identity = self._identity()
        if self._is_finished(identity):
            print("  finished before, not trained again")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        engine.seed_everything(self.stage.seed)
        if self.stage.kind == "teacher" and self.config.teacher_file:
            self._adopt_teacher(identity, self.config.teacher_file)
        else:
            self._train(self._task(), identity)

    def _train(self, task: Task, identity: dict[str, Any]) -> None:
        config = self.config
        started = time.perf_counter()
        if isinstance(task, DistillTask):
            for name, first in task.distiller.initialisations():
                self._initialise(name, first, identity, lr=task.model.default_lr)
        lr, epochs = task.model.default_lr, config.epochs_of(self.stage.kind)
        fit = self._fit(task, self.folder, identity, epochs=epochs, optim=config.optim, lr=lr)
        figures = {
            "last": _scores(fit.last),
            "best": _scores(fit.best),
            "seconds": time.perf_counter() - started,
            "images_per_second": fit.images_per_second,
            "data_wait_share": fit.data_wait_share,
        }
        self._record(task.model, identity, figures)

    def _initialise(self, name: str, first: Initialisation, identity: dict[str, Any], *, lr: float) -> None:
        """Train what a method needs before the student can learn; gone on with, or done already, as any other fit."""
        print(f"  initialisation of {name}, {first.epochs} epochs", flush=True)
        optim = dataclasses.replace(
            self.config.optim,
            lr=first.lr if first.lr is not None else self.config.optim.lr,
            schedule="milestones" if first.milestones else "constant",
            milestones=tuple(first.milestones) or None,
        )
        folder = self.folder / f"init-{name}"
        folder.mkdir(exist_ok=True)
        self._fit(first.task, folder, identity | {"initialisation": name}, epochs=first.epochs, optim=optim, lr=lr)
        first.task.finish()

    def _fit(
        self,
        task: Task | InitTask,
        folder: Path,
        identity: dict[str, Any],
        *,
        epochs: int,
        optim: OptimConfig,
        lr: float,
    ) -> engine.FitResult:
        return engine.fit(
            task,
            self.data,
            epochs=epochs,
            optim=optim,
            engine=self.config.engine,
            folder=folder,
            fingerprint=identity,
            seed=self.stage.seed,
            lr=lr,
            resume=self.config.resume,
        )

    def _adopt_teacher(self, identity: dict[str, Any], file: str) -> None:
        """Measure a teacher that came from a file and take it for this run's own."""
        network = self._load("teacher_file", file).to(self.device)
        measured = {"epoch": 0, **engine.evaluate(network, self.data.test, engine.Layout(self.device))}
        print(f"  {file}: top-1 {measured['top1']:.2f} %")
        nothing = {"seconds": 0.0, "images_per_second": 0.0, "data_wait_share": 0.0}
        self._record(network, identity, {"last": measured, "best": measured, **nothing})

    def _record(self, network: StagedNet, identity: dict[str, Any], figures: dict[str, Any]) -> None:
        """Export the network and write ``result.json``, last, because its presence says that the stage is finished."""
        stage = self.stage
        models.save(network, self.folder, meta={"top1": figures["last"]["top1"], "image_size": self.data.image_size})
        likeness = self._likeness(network)
        result = {
            "name": stage.name,
            "seed": stage.seed,
            "network": network.name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "epochs": self.config.epochs_of(stage.kind),
            **figures,
            **likeness,
            "identity": identity,
        }
        write_atomically(self.folder / RESULT, json.dumps(result, indent=2))

    def _likeness(self, network: StagedNet) -> dict[str, float | None]:
        """How alike a student and its teacher answer; a student alone is held against the standard teacher."""
        source = self.stage.source or ("teacher" if self.stage.kind == "student" else None)
        if source is None or not (self.seed_folder / source / RESULT).is_file():
            return dict.fromkeys(field.name for field in dataclasses.fields(similarity.Similarity))
        teacher = models.load(self.seed_folder / source).to(self.device)
        return dataclasses.asdict(similarity.measure(network, teacher, self.data.test))

    def _task(self) -> Task:
        """The networks of this stage and what they are trained to do."""
        config, stage = self.config, self.stage
        if stage.kind == "teacher":
            return SupervisedTask(self._build(config.teacher))
        if stage.kind == "student":
            return SupervisedTask(self._build(config.student))
        if stage.kind == "sftn":
            return self._sftn_task()
        student, teacher = self._build(config.student), models.load(self.seed_folder / str(stage.source))
        distiller = distillers.build(
            config.distill,
            student=student,
            teacher=teacher,
            num_samples=self.data.num_train,
            image_size=self.data.image_size,
            labels=self.data.train_labels,
        )
        for line in distiller.describe():
            print(f"  {line}")
        return DistillTask(student, distiller)

    def _sftn_task(self) -> Task:
        config = self.config.sftn
        teacher = self._build(self.config.teacher)
        if config.init == "teacher":
            teacher = models.load(self.seed_folder / "teacher")
        elif config.init:
            teacher = self._load("sftn.init", config.init)
        student = self._build(self.config.student)
        aware = StudentAwareTeacher(
            teacher, student, image_size=self.data.image_size, stages=config.stages, share_student=config.share_student
        )
        for line in aware.describe():
            print(f"  {line}")
        return SFTNTask(aware, config)

    def _network_name(self) -> str:
        return self.config.teacher if self.stage.kind in ("teacher", "sftn") else self.config.student

    def _build(self, name: str) -> StagedNet:
        return models.build(name, num_classes=self.data.num_classes, in_channels=self.data.in_channels)

    def _load(self, key: str, path: str) -> StagedNet:
        """The configuration's teacher with the weights in the file that ``key`` names."""
        network = self._build(self.config.teacher)
        try:
            models.load_weights(network, path)
        except (OSError, models.WeightsError) as error:
            raise ConfigError(f"{key}: {error}") from error
        return network

    def _identity(self) -> dict[str, Any]:
        """All that decides what this stage computes; a folder is only gone on with if it agrees."""
        config, stage = self.config, self.stage
        whole = cli.to_dict(config)
        identity = {
            "stage": stage.name,
            "seed": stage.seed,
            "network": self._network_name(),
            "epochs": config.epochs_of(stage.kind),
            "amp": config.engine.amp,
            "channels_last": config.engine.channels_last,
            "optim": whole["optim"],
            "data": self.data.fingerprint(),
        }
        if stage.kind == "sftn":
            identity |= {"student": config.student, "sftn": whole["sftn"]}
            if config.sftn.init == "teacher":
                identity["init"] = _weights_digest(self.seed_folder / "teacher")
        if stage.kind == "teacher":
            identity["teacher_file"] = config.teacher_file
        if stage.kind == "distill":
            identity |= {"distill": config.distill, "teacher": _weights_digest(self.seed_folder / str(stage.source))}
        return identity

    def _is_finished(self, identity: dict[str, Any]) -> bool:
        path = self.folder / RESULT
        if not path.is_file():
            return False
        if self.config.resume == "never":
            raise ConfigError(f"output {self.folder.parent.parent} holds a run already, and resume is never")
        differing = differences(json.loads(path.read_text())["identity"], identity)
        if differing and self.config.resume != "force":
            raise FingerprintMismatch(differing)
        return True


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    """The figures on the test set out of an epoch's row."""
    return {"epoch": row["epoch"], "top1": row["test_top1"], "ce": row["test_ce"]}


def _weights_digest(folder: Path) -> str:
    """The checksum of a finished network's weights, which says whether it is still the same network."""
    return models.read_config(folder)["sha256"]
