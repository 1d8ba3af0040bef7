"""One stage of an experiment on its way from the configuration to ``result.json``."""

from __future__ import annotations

import dataclasses
import errno
import logging
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch

from sftn_fast import distillers, engine, models
from sftn_fast.config import Config, ConfigError, OptimConfig
from sftn_fast.data import ImageData
from sftn_fast.distillers.method import Initialisation, InitTask
from sftn_fast.engine import distributed, divergence
from sftn_fast.engine.device import is_channels_last
from sftn_fast.experiment import class_counts, job_state, repair, similarity, teacher_check
from sftn_fast.experiment.identity import trained_digest
from sftn_fast.experiment.plan import RESULT, Job, needs, networks_of
from sftn_fast.experiment.teacher_cache import policy
from sftn_fast.models import StagedNet
from sftn_fast.sftn import StudentAwareTeacher
from sftn_fast.tasks import CollaborativeTask, DistillTask, Route, SFTNTask, SupervisedTask, Task
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import write_atomically
from sftn_fast.utils.checksummed import DamagedError, read_regular, read_sealed, seal
from sftn_fast.utils.environment import environment, surroundings

logger = logging.getLogger(__name__)

SECONDS = "seconds"
"""File that says how long a stage has trained, whether it is finished or was stopped."""
COMPARED = "compared_with"
"""Key of a result: checksum of the teacher's weights that the network was compared with; null for none."""


class JobRunner:
    """One stage on its way from configuration to ``result.json``."""

    def __init__(self, config: Config, stage: Job, root: Path, device: torch.device, images: ImageData) -> None:
        self.config, self.stage, self.device, self.data = config, stage, device, images
        self.root, self.folder = root, stage.folder(root)
        self.seed_folder = self.folder.parent
        self._seconds_before = 0.0

    def finish(self) -> None:
        """Train the stage, unless that is done already."""
        self._mend_sources()
        if distributed.on_main(self._is_finished):
            self._compare_again()
            return
        if self.config.cache_teacher:
            policy.check_run(self.config, self.data, self.seed_folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        engine.seed_everything(self.stage.seed)
        if self.stage.kind == "teacher" and self.config.teacher_file:
            self._adopt_teacher(self.config.teacher_file)
        else:
            task = self.task()
            self._train(task, self._identity())

    def _train(self, task: Task, identity: dict[str, Any]) -> None:
        with _Clock(self.folder / SECONDS) as clock:
            fit = self._fit_all(task, identity)
        figures = {
            "last": _scores(fit.last),
            "best": _scores(fit.best),
            # Where the job was finished before and its files are damaged, one of the three has what it took.
            "seconds": max(clock.seconds, fit.seconds, self._seconds_before),
            "images_per_second": fit.images_per_second,
            "data_wait_share": fit.data_wait_share,
            "diverged": self._diverged(task, fit),
        }
        if isinstance(task, CollaborativeTask):
            figures["peers"] = self._evaluate_peers(task)
        self._record(task.model, identity, figures)

    def _diverged(self, task: Task, fit: engine.FitResult) -> str | None:
        """What was wrong with the training, if it was; said beside being kept."""
        networks = len(task.networks) if isinstance(task, CollaborativeTask) else 1
        wrong = divergence.verdict(fit.history, self.data.num_classes, networks=networks)
        if wrong:
            distributed.say(f"  warning: {wrong}")
        return wrong

    def _fit_all(self, task: Task, identity: dict[str, Any]) -> engine.FitResult:
        """The fit of the stage, behind those that its methods need before it."""
        config = self.config
        if isinstance(task, DistillTask):
            for name, first in task.distiller.initialisations():
                self._initialise(name, first, identity, lr=task.model.default_lr)
        lr, epochs = task.model.default_lr, config.epochs_of(self.stage.kind)
        keep: Callable[[int], None] | None = None
        if self.stage.kind in ("teacher", "sftn"):
            keep = partial(self._keep_anchor, task)
        elif isinstance(task, DistillTask) and config.cache_teacher:
            keep = self._keep_logits(task)
        return self._fit(task, self.folder, identity, epochs=epochs, optim=config.optim, lr=lr, on_epoch=keep)

    def _evaluate_peers(self, task: CollaborativeTask) -> list[dict[str, Any]]:
        """The networks that learned beside the exported one, on the test set."""
        layout = engine.Layout(self.device)
        peers = []
        for number, network in enumerate(cast(list[StagedNet], list(task.networks)[:-1]), start=1):
            peers.append({"network": network.name, **engine.evaluate(network, self.data.test, layout)})
            distributed.on_main(partial(models.save, network, self.folder / f"peer{number}"))
            distributed.say(f"  {network.name}, which learned beside it: top-1 {peers[-1]['top1']:.2f} %")
        return peers

    def _keep_anchor(self, task: Task, epoch: int) -> None:
        """Export the teacher as it is after ``epoch``, counted from 1, if students are to learn along its route."""
        if epoch in self.config.route.epochs_of(self.config.epochs_of(self.stage.kind)):
            models.save(task.model, job_state.anchor(self.folder, epoch), meta={"epoch": epoch})

    def _keep_logits(self, task: DistillTask) -> Callable[[int], None]:
        """Leave out the teacher's passes whose logits are known; what writes those of an epoch, once it has ended."""
        source, data = str(self.stage.source), self.data
        folder = self.seed_folder / policy.FOLDER / source
        distributed.say(f"  {policy.describe(folder, data, self.config.epochs_of('distill'))}")
        about = {"teacher": trained_digest(self.seed_folder / source), "seed": self.stage.seed}
        return policy.keep_logits(task, data, self.config, self.device, folder, about).end_epoch

    def _route(self) -> Route | None:
        """The anchors of the stage's teacher, in the order of its training."""
        folder, config = self.seed_folder / str(self.stage.source), self.config
        epochs = config.route.epochs_of(config.epochs_of(str(self.stage.source)))
        if not epochs:
            return None
        anchors = [job_state.anchor(folder, epoch) for epoch in epochs]
        for anchor in anchors:
            if not (anchor / "config.json").exists():
                raise ConfigError(f"route needs {anchor}, which its teacher, finished before, did not leave")
            try:
                models.verify(anchor)
            except (OSError, models.WeightsError) as error:
                raise DamagedError(f"route needs {anchor}, but {error}; remove {folder} to train it again") from error
        return Route(anchors, config.epochs_of("distill"))

    def _initialise(self, name: str, first: Initialisation, identity: dict[str, Any], *, lr: float) -> None:
        """Train what a method needs before the student can learn; gone on with, or done already, as any other fit."""
        distributed.say(f"  initialisation of {name}, {first.epochs} epochs")
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
        on_epoch: Callable[[int], None] | None = None,
    ) -> engine.FitResult:
        return engine.fit(
            task,
            self._data_for(task),
            epochs=epochs,
            optim=optim,
            engine=self.config.engine,
            folder=folder,
            fingerprint=identity,
            seed=self.stage.seed,
            lr=lr,
            resume="never" if self.config.resume == "never" else "auto",
            on_epoch=on_epoch,
        )

    def _data_for(self, task: Task | InitTask) -> ImageData:
        """The images, augmented as often as ``task`` asks for."""
        return self.data.with_views(task.views if isinstance(task, CollaborativeTask) else 1)

    def _adopt_teacher(self, file: str) -> None:
        """Measure a teacher that came from a file and take it for this run's own."""
        network = self._load("teacher_file", file).to(self.device)
        identity, layout = self._identity(), engine.Layout(self.device)
        measured = {"epoch": 0, **engine.evaluate(network, self.data.test, layout)}
        distributed.say(f"  {file}: top-1 {measured['top1']:.2f} %")
        doubts = teacher_check.doubts(network, measured["top1"], self.data, layout)
        for doubt in doubts:
            distributed.say(f"  warning: {doubt}")
        nothing = {"seconds": 0.0, "images_per_second": 0.0, "data_wait_share": 0.0}
        self._record(network, identity, {"last": measured, "best": measured, **nothing, "doubts": doubts})

    def _record(self, network: StagedNet, identity: dict[str, Any], figures: dict[str, Any]) -> None:
        """Export the network and write ``result.json``, last, because its presence says that the stage is finished."""
        stage = self.stage
        likeness = self._likeness(network)
        counts = engine.count_by_class(network, self.data.test, self._layout(network), self.data.num_classes)
        result = {
            "name": stage.name,
            "seed": stage.seed,
            "network": network.name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "epochs": 0 if identity.get("teacher_file") else self.config.epochs_of(stage.kind),
            **figures,
            **likeness,
            "devices": engine.distributed.world_size(),
            "environment": environment(self.device),
            "identity": identity,
        }
        distributed.on_main(partial(self._write, network, result, counts))

    def _layout(self, network: StagedNet) -> engine.Layout:
        """As the stage's training evaluates, so that its counts are those of its top-1."""
        config = self.config.engine
        channels_last = is_channels_last(config.channels_last, network, self.device)
        return engine.Layout(self.device, engine.amp_dtype(config.amp, self.device), channels_last)

    def _write(self, network: StagedNet, result: dict[str, Any], counts: engine.ClassCounts) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run's folder was removed", str(self.folder))
        meta = {"top1": result["last"]["top1"], "image_size": self.data.image_size}
        names = teacher_check.class_names(self.data)
        meta |= {"class_names": names} if names else {}
        models.save(network, self.folder, meta=meta)
        result["by_class"] = class_counts.write(self.folder, counts.images, counts.right, counts.predicted, names)
        if warning := class_counts.only_class(result):
            print(f"  warning: {warning}", flush=True)
        write_atomically(self.folder / RESULT, seal(result | {run_files.FILES: run_files.checksums(self.folder)}))

    def _likeness(self, network: StagedNet) -> dict[str, Any]:
        """How alike a student and its teacher answer; a student alone is held against the standard teacher."""
        source = self.stage.source or ("teacher" if self.stage.kind == "student" else None)
        if source is None or not (self.seed_folder / source / RESULT).is_file():
            nothing = dict.fromkeys(field.name for field in dataclasses.fields(similarity.Similarity))
            return {**nothing, COMPARED: None}
        teacher = self._finished(source).to(self.device)
        alike = dataclasses.asdict(similarity.measure(network, teacher, self.data.test))
        return {**alike, COMPARED: trained_digest(self.seed_folder / source)}

    def task(self) -> Task:
        """The networks of this stage and what they are trained to do; says how their stages are paired."""
        config, stage = self.config, self.stage
        if stage.kind == "teacher":
            return SupervisedTask(self._build(config.teacher))
        if stage.kind == "student":
            return SupervisedTask(self._build(config.student))
        if stage.kind == "sftn":
            return self._sftn_task()
        if stage.kind == "collaborate":
            return self._collaborative_task()
        student, teacher = self._build(config.student), self._finished(str(stage.source))
        distiller = distillers.build(
            stage.method or config.distill,
            student=student,
            teacher=teacher,
            num_samples=self.data.num_train,
            image_size=self.data.image_size,
            labels=self.data.train_labels,
            gather=config.gather,
        )
        for line in distiller.describe():
            distributed.say(f"  {line}")
        return DistillTask(student, distiller, self._route())

    def _collaborative_task(self) -> Task:
        config = self.config.collaborate
        networks = [self._build(name) for name in networks_of(self.config)]
        if config.init:
            networks[0] = self._finished(config.init)
        return CollaborativeTask(networks, config)

    def _sftn_task(self) -> Task:
        config = self.config.sftn
        teacher = self._build(self.config.teacher)
        if config.init == "teacher":
            teacher = self._finished("teacher")
        elif config.init:
            teacher = self._load("sftn.init", config.init)
        student = self._build(self.config.student)
        aware = StudentAwareTeacher(
            teacher,
            student,
            image_size=self.data.image_size,
            stages=config.branch_stages,
            share_student=config.share_student,
        )
        for line in aware.describe():
            distributed.say(f"  {line}")
        return SFTNTask(aware, config)

    def _finished(self, name: str) -> StagedNet:
        """The teacher that the stage ``name`` of the same seed has left."""
        try:
            return models.load(self.seed_folder / name)
        except (OSError, models.WeightsError) as error:
            raise DamagedError(str(error)) from error

    def _mend_sources(self) -> None:
        """Have the networks that this stage reads made again where they were damaged since they were finished."""
        for name in sorted(needs(self.config, self.stage)):
            if distributed.on_main(partial(self._is_damaged, name)):
                JobRunner(self.config, Job(name, self.stage.seed), self.root, self.device, self.data).finish()

    def _is_damaged(self, name: str) -> bool:
        if not (self.seed_folder / name / RESULT).exists():
            return False
        try:
            models.verify(self.seed_folder / name)
        except (OSError, models.WeightsError):
            return True
        return False

    def _build(self, name: str) -> StagedNet:
        return models.build(name, num_classes=self.data.num_classes, in_channels=self.data.in_channels)

    def _load(self, key: str, path: str) -> StagedNet:
        """The configuration's teacher with the weights in the file that ``key`` names."""
        network = self._build(self.config.teacher)
        try:
            models.load_weights(
                network, path, keep_head=key == "sftn.init", say=lambda line: distributed.say(f"  {line}")
            )
        except (OSError, models.WeightsError) as error:
            raise ConfigError(f"{key}: {error}") from error
        return network

    def _identity(self) -> dict[str, Any]:
        """All that decides what this stage computes, now that the files that it begins with have been read."""
        return job_state.wanted_identity(self.config, self.stage, self.root, self.data)

    def _is_finished(self) -> bool:
        """Whether the stage has the result that is wanted; one of other settings is refused or set aside.

        What is damaged in its folder is named, and mended unless that takes the network.
        """
        result = self._intact_result()
        found = job_state.look(self.config, self.stage, self.root, self.data)
        if found.begun and self.config.resume == "never":
            raise ConfigError(f"output {self.root} holds a run already, and resume is never")
        job_state.refuse(self.config, found, self.root)
        if found.differing:
            job_state.set_aside(found, self.root)
        changes = job_state.environment_changes(self.config, found, surroundings(self.device))
        kept = found.kept and result is not None and repair.mend(self.folder, result)
        if kept:
            print(f"  finished before, not trained again{changes}", flush=True)
        elif changes:
            print(f"  goes on{changes}", flush=True)
        elif result is not None and not found.differing:
            self._seconds_before = result["seconds"]
        return kept

    def _intact_result(self) -> dict[str, Any] | None:
        """The stage's result; None where there is none, or a damaged one, which is named."""
        if not (self.folder / RESULT).exists():
            return None
        try:
            return run_files.read_result(self.folder)
        except DamagedError as error:
            logger.warning("%s; made again from the last checkpoint", error)
            return None

    def _compare_again(self) -> None:
        """Measure a finished student alone against the standard teacher, where that is another than it was then."""
        if self.stage.kind != "student":
            return
        result = distributed.on_main(partial(run_files.read_result, self.folder))
        teacher = trained_digest(self.seed_folder / "teacher")
        if teacher is None or result.get(COMPARED, teacher) == teacher:
            return
        distributed.say("  compared again, with the teacher that there is now")
        compared = result | self._likeness(self._finished(self.stage.name).to(self.device))
        distributed.on_main(partial(write_atomically, self.folder / RESULT, seal(compared)))


class _Clock:
    """Context that counts the seconds spent in it, with those of earlier starts, which ``path`` has.

    What a killed process had spent since it began is not counted.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, read_seconds(path)

    def __enter__(self) -> _Clock:
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += time.perf_counter() - self._started
        if not distributed.is_main():
            return
        try:
            write_atomically(self.path, seal({"seconds": round(self.seconds, 3)}))
        except OSError as failure:
            if error is None:  # else that is what there is to say
                logger.warning("%s can't be written: %s; training goes on", self.path, failure.strerror)


def read_seconds(path: Path) -> float:
    """Return the seconds that the file ``path`` says a stage has trained; 0 without one, or a damaged one."""
    if not path.exists():
        return 0.0
    try:
        try:
            seconds = float(read_sealed(path)["seconds"])
        except DamagedError:
            seconds = float(read_regular(path))  # as older versions wrote it
        if math.isfinite(seconds) and seconds >= 0:
            return seconds
    except (DamagedError, ValueError, KeyError, TypeError):
        pass
    logger.warning("%s is damaged: the seconds before this start are not counted", path)
    return 0.0


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    """The figures on the test set out of an epoch's row."""
    return {"epoch": row["epoch"], "top1": row["test_top1"], "ce": row["test_ce"]}
