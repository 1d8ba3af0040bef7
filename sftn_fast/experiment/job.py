"""One job of an experiment, from the configuration to ``result.json``."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sftn_fast import engine, models
from sftn_fast.config import Config, ConfigError, EmaConfig, OptimConfig
from sftn_fast.data import ImageData
from sftn_fast.distillers.method import Initialisation, InitTask
from sftn_fast.engine import distributed, divergence
from sftn_fast.engine.best_epoch import BestEpoch
from sftn_fast.engine.device import is_channels_last
from sftn_fast.engine.protocols import Splits
from sftn_fast.experiment import (
    best_epoch,
    class_accuracy,
    job_state,
    networks,
    repair,
    service_runs,
    similarity,
    teacher_check,
)
from sftn_fast.experiment.clock import SECONDS, Clock
from sftn_fast.experiment.identity import teaching_folder, trained_digest
from sftn_fast.experiment.kinds import branch
from sftn_fast.experiment.kinds.base import EndOfEpoch
from sftn_fast.experiment.kinds.snapshots import route_epochs, snapshot
from sftn_fast.experiment.plan import RESULT, Job
from sftn_fast.experiment.teacher_cache import policy
from sftn_fast.loggers import OpenRun, Services
from sftn_fast.models import StagedNet
from sftn_fast.tasks import CollaborativeTask, DistillTask, Route, Task
from sftn_fast.utils import run_files
from sftn_fast.utils.atomic import replace_files, write_atomically
from sftn_fast.utils.checksummed import DamagedError, seal
from sftn_fast.utils.derived_files import discard
from sftn_fast.utils.environment import environment, surroundings

logger = logging.getLogger(__name__)

COMPARED = "compared_with"
"""Key of a result: checksum of the teacher's weights that the network was compared with, or null."""


class JobRunner:
    """Runs one job. What differs between kinds of jobs is in :mod:`sftn_fast.experiment.kinds`."""

    def __init__(
        self,
        config: Config,
        job: Job,
        root: Path,
        device: torch.device,
        images: ImageData,
        services: Services | None = None,
    ) -> None:
        self.config, self.job, self.device = config, job, device
        self.root, self.folder = root, job.folder(root)
        self.seed_folder = self.folder.parent
        self.behaviour = job.behaviour
        self._images = images
        self.data = self.behaviour.images(images)
        self.services = services or Services()
        self._seconds_before = 0.0

    def finish(self) -> None:
        """Train the job's network, unless it is finished already."""
        self._repair_sources()
        if distributed.on_main(self._is_finished):
            self._compare_again()
            return
        if self.config.cache_teacher:
            policy.check_run(self.config, self._images, self.seed_folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        engine.seed_everything(self.job.seed)
        with self._open_run() as run:
            if self.behaviour.trains(self.config):
                self._train(self.task(), self._identity(), run)
            else:
                self._measure(run)

    def _open_run(self, part: str | None = None) -> OpenRun:
        """Return the job's run at the services, or that of the training in its folder ``part``."""
        return self.services.open(service_runs.describe(self.config, self.job, self.root, self.device, part=part))

    def task(self) -> Task:
        """Return what the job trains. Says how the stages of its networks are paired."""
        return self.behaviour.build_task(self)

    def build(self, name: str) -> StagedNet:
        """Return a new network for the images."""
        return networks.build(name, self.data)

    def start(self, role: networks.Role) -> StagedNet:
        """Return the configuration's teacher or student as its training starts."""
        return networks.start(self.config, role, self.data, self._say)

    def finished(self, name: str) -> StagedNet:
        """Return the network of the job ``name`` of the same seed that others learn from."""
        try:
            return models.load(teaching_folder(self.config, self.seed_folder, name))
        except (OSError, models.WeightsError) as error:
            raise DamagedError(str(error)) from error

    def start_as_branch(self, student: StagedNet, teacher: str) -> None:
        """Copy the earliest branch of the job ``teacher`` into ``student``. Says so."""
        folder = self.seed_folder / teacher
        try:
            self._say(branch.load(student, folder))
        except (OSError, models.WeightsError) as error:
            raise DamagedError(f"sftn.init_student needs {folder / run_files.BRANCH}, but {error}") from error

    def load(self, key: str, path: str) -> StagedNet:
        """Return the configuration's teacher with the weights in ``path``, which the setting ``key`` names."""
        return networks.load(self.config.teacher, key, path, self.data, self._say)

    def _say(self, line: str) -> None:
        distributed.say(f"  {line}")

    def snapshot_of(self, teacher: str, epoch: int) -> StagedNet:
        """Return the network of the job ``teacher`` as it was after ``epoch``, counted from 1."""
        folder = self.seed_folder / teacher
        try:
            return models.load(snapshot(folder, epoch))
        except (OSError, models.WeightsError) as error:
            raise DamagedError(f"epoch {epoch} is needed, but {error}; remove {folder} to train it again") from error

    def route(self) -> Route | None:
        """Return the snapshots of the job's teacher, in the order of its training, if the student follows them."""
        folder, epochs = self.seed_folder / str(self.job.source), route_epochs(self.config, str(self.job.source))
        if not epochs:
            return None
        snapshots = [snapshot(folder, epoch) for epoch in epochs]
        for path in snapshots:
            if not (path / "config.json").exists():
                raise ConfigError(f"route needs {path}, but its teacher was trained without saving it")
            try:
                models.verify(path)
            except (OSError, models.WeightsError) as error:
                raise DamagedError(f"route needs {path}, but {error}; remove {folder} to train it again") from error
        return Route(snapshots, self.config.epochs_of("distill"))

    def _train(self, task: Task, identity: dict[str, Any], run: OpenRun) -> None:
        with Clock(self.folder / SECONDS) as clock:
            fit = self._fit_all(task, identity, run)
        figures = {
            "last": _scores(fit.last),
            "best": _scores(fit.best) | best_epoch.choice(fit.best),
            # If the job was finished before and its files are damaged, one of the three is its whole time.
            "seconds": max(clock.seconds, fit.seconds, self._seconds_before),
            "images_per_second": fit.images_per_second,
            "data_wait_share": fit.data_wait_share,
            "diverged": self._diverged(task, fit),
        }
        if "test_ema_top1" in fit.last:
            figures["ema"] = _scores(fit.last, "test_ema_")
        figures |= self.behaviour.extra_figures(self, task)
        self._record(
            task.model, identity, figures, run, {run_files.BEST: fit.best_weights, run_files.EMA: fit.ema_weights}
        )

    def _diverged(self, task: Task, fit: engine.FitResult) -> str | None:
        """Return what went wrong with the training, if anything did, and print it."""
        summed = len(task.networks) if isinstance(task, CollaborativeTask) else task.views
        wrong = divergence.verdict(fit.history, self.data.num_classes, summed=summed)
        if wrong:
            distributed.say(f"  warning: {wrong}")
        return wrong

    def _fit_all(self, task: Task, identity: dict[str, Any], run: OpenRun) -> engine.FitResult:
        """Train what the methods need first, then the job's network."""
        config, lr = self.config, task.model.default_lr
        if isinstance(task, DistillTask):
            for name, first in task.distiller.initialisations():
                self._initialise(name, first, identity, lr=lr)
        return self._fit(
            task,
            self.folder,
            identity,
            run,
            epochs=config.epochs_of(self.job.kind),
            optim=config.optim_of(self.job.kind),
            lr=lr,
            on_epoch=self.behaviour.end_of_epoch(self, task),
            on_best=partial(self._keep_best, task.model),
            ema=self.behaviour.ema(config),
        )

    def _initialise(self, name: str, first: Initialisation, identity: dict[str, Any], *, lr: float) -> None:
        """Train what the method ``name`` needs before the student can learn. Resumes as any other training."""
        distributed.say(f"  initialisation of {name}, {first.epochs} epochs")
        # A learning rate that a method's authors give is one of SGD.
        chosen = self.config.optim if first.lr is None or self.config.optim.is_sgd else OptimConfig()
        optim = dataclasses.replace(
            self.config.optim,
            name=chosen.name,
            arguments=chosen.arguments,
            weight_decay=chosen.weight_decay,
            dot=0.0,
            lr=first.lr if first.lr is not None else self.config.optim.lr,
            schedule="milestones" if first.milestones else "constant",
            milestones=tuple(first.milestones) or None,
            warmup_lr=None,
            min_lr=0.0,
            warmup_epochs=warmup if (warmup := self.config.optim.warmup_epochs) < first.epochs else 0.0,
        )
        folder = self.folder / f"init-{name}"
        folder.mkdir(exist_ok=True)
        own = identity | {"initialisation": name}
        with self._open_run(folder.name) as run:
            self._fit(first.task, folder, own, run, epochs=first.epochs, optim=optim, lr=lr)
        first.task.finish()

    def _fit(
        self,
        task: Task | InitTask,
        folder: Path,
        identity: dict[str, Any],
        run: OpenRun,
        *,
        epochs: int,
        optim: OptimConfig,
        lr: float,
        on_epoch: EndOfEpoch | None = None,
        on_best: Callable[[BestEpoch], None] | None = None,
        ema: EmaConfig | None = None,
    ) -> engine.FitResult:
        return engine.fit(
            task,
            self.images_for(task),
            epochs=epochs,
            optim=optim,
            engine=self.config.engine,
            folder=folder,
            fingerprint=identity,
            seed=self.job.seed,
            lr=lr,
            resume="never" if self.config.resume == "never" else "auto",
            on_epoch=on_epoch,
            on_best=on_best,
            ema=ema,
            services=run,
        )

    def images_for(self, task: Task | InitTask) -> Splits:
        """Return the images, mixed if so configured, with as many augmented views of each as ``task`` asks for."""
        views, strong = (task.views, task.strong_view) if isinstance(task, Task) else (1, False)
        return self.data.with_views(views, strong=strong).mixed()

    def _measure(self, run: OpenRun) -> None:
        """Evaluate a network that is not trained here and record it as the job's result."""
        source, network = self.behaviour.measured(self)
        network.to(self.device)
        identity, layout = self._identity(), engine.Layout(self.device)
        measured = {"epoch": 0, **engine.evaluate(network, self.data.test, layout)}
        distributed.say(f"  {source}: top-1 {measured['top1']:.2f} %")
        from_file = self.behaviour.initial_file(self.config) is not None
        doubts = teacher_check.doubts(network, measured["top1"], self.data, layout) if from_file else []
        for doubt in doubts:
            distributed.say(f"  warning: {doubt}")
        nothing = {"seconds": 0.0, "images_per_second": 0.0, "data_wait_share": 0.0}
        self._record(network, identity, {"last": measured, "best": measured, **nothing, "doubts": doubts}, run)

    def _record(
        self,
        network: StagedNet,
        identity: dict[str, Any],
        figures: dict[str, Any],
        run: OpenRun,
        others: Mapping[str, dict[str, Tensor] | None] | None = None,
    ) -> None:
        """Export the network, then write ``result.json``, whose presence says that the job is finished.

        ``others`` are other weights of it by the name of their figures, which is that of their folder too.
        """
        job = self.job
        likeness = self._likeness(network)
        counts = engine.count_by_class(network, self.data.test, self._layout(network), self.data.num_classes)
        result = {
            "name": job.name,
            "seed": job.seed,
            "network": network.name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "epochs": self.config.epochs_of(job.kind) if self.behaviour.trains(self.config) else 0,
            **figures,
            **likeness,
            "devices": engine.distributed.world_size(),
            "environment": environment(self.device),
            "identity": identity,
            "test_content": self.data.test_content,
        }
        distributed.on_main(partial(self._write, network, result, counts, others or {}))
        run.results(service_runs.figures(result))

    def _layout(self, network: StagedNet) -> engine.Layout:
        """Return the layout in which the training evaluates, so that counts by class add up to its top-1."""
        config = self.config.engine
        channels_last = is_channels_last(config, network, self.device)
        return engine.Layout(self.device, engine.amp_dtype(config.amp, self.device), channels_last)

    def _write(
        self,
        network: StagedNet,
        result: dict[str, Any],
        counts: engine.ClassCounts,
        others: Mapping[str, dict[str, Tensor] | None],
    ) -> None:
        self._require_folder()
        why = {"chosen_by": best_epoch.LAST} if result["epochs"] else {}
        models.save(network, self.folder, meta=self._meta(result["last"] | why))
        for folder, weights in others.items():
            if weights is not None:
                self._write_weights(folder, network, result[folder] | (why if folder == run_files.EMA else {}), weights)
        names = teacher_check.class_names(self.data)
        result["by_class"] = class_accuracy.write(self.folder, counts.images, counts.right, counts.predicted, names)
        if warning := class_accuracy.only_class(result):
            print(f"  warning: {warning}", flush=True)
        write_atomically(self.folder / RESULT, seal(result | {run_files.FILES: run_files.checksums(self.folder)}))

    def _require_folder(self) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the run's folder was removed", str(self.folder))

    def _meta(self, scores: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an export of the job's network tells; ``scores`` are of the exported weights."""
        names = teacher_check.class_names(self.data)
        return {
            "top1": scores["top1"],
            **best_epoch.of_export(scores),
            "image_size": self.data.image_size,
            **({"class_names": names} if names else {}),
            **({"preprocessing": self.data.preprocessing.to_json()} if self.data.preprocessing else {}),
            "data": self.data.name,
            "trained_as": self.behaviour.describe(self.config, self.job),
        }

    def _keep_best(self, network: StagedNet, best: BestEpoch) -> None:
        """Export the best epoch so far. On a full disk this waits for the job's end: the checkpoints have it too."""
        try:
            scores = _scores(best.row) | best_epoch.choice(best.row)
            self._write_weights(run_files.BEST, network, scores, best.weights)
        except OSError as error:
            if not self.folder.is_dir():
                raise
            folder, reason = self.folder / run_files.BEST, error.strerror or error
            logger.warning("%s can't be written (%s); training continues, its end writes it again", folder, reason)

    def _write_weights(
        self, name: str, network: StagedNet, scores: Mapping[str, Any], weights: dict[str, Tensor]
    ) -> None:
        """Export ``weights`` of ``network`` into the folder ``name``, unless they are there already."""
        averaged = {"ema_decay": self.config.ema.decay} if name == run_files.EMA else {}
        self.write_network(name, models.to_files(network, weights=weights, meta=self._meta(scores) | averaged))

    def write_network(self, name: str, files: dict[str, bytes]) -> None:
        """Write the ``files`` of an export into the folder ``name`` of the job, unless they are there already."""
        self._require_folder()
        folder = self.folder / name
        try:
            same = models.read_files(folder) == files
        except (OSError, models.WeightsError):
            same = False
        discard(folder, files)
        if not same:
            replace_files(folder, files)

    def _likeness(self, network: StagedNet) -> dict[str, Any]:
        """Compare the network with its teacher; a student alone with the standard teacher."""
        source = self.behaviour.compared_with(self.job)
        if source is None or not (self.seed_folder / source / RESULT).is_file():
            nothing = dict.fromkeys(field.name for field in dataclasses.fields(similarity.Similarity))
            return {**nothing, COMPARED: None}
        teacher = self.finished(source).to(self.device)
        alike = dataclasses.asdict(similarity.measure(network, teacher, self.data.test))
        return {**alike, COMPARED: trained_digest(self.config, self.seed_folder, source)}

    def _repair_sources(self) -> None:
        """Make the networks again that this job reads, if they were damaged after they were finished."""
        parts = self.behaviour.parts_read(self.config, self.job)
        for name in sorted(self.behaviour.needs(self.config, self.job)):
            if distributed.on_main(partial(self._is_damaged, name, parts)):
                source = Job(name, self.job.seed)
                JobRunner(self.config, source, self.root, self.device, self._images, self.services).finish()

    def _is_damaged(self, name: str, parts: tuple[str, ...]) -> bool:
        folder = self.seed_folder / name
        if not (folder / RESULT).exists():
            return False
        try:
            for each in (teaching_folder(self.config, self.seed_folder, name), *(folder / part for part in parts)):
                models.verify(each)
        except (OSError, models.WeightsError):
            return True
        return False

    def _identity(self) -> dict[str, Any]:
        """Return the job's identity. To be called once the files that it starts from have been read."""
        return job_state.wanted_identity(self.config, self.job, self.root, self.data)

    def _is_finished(self) -> bool:
        """Return whether the job has the wanted result; refuse or set aside one of other settings.

        Names what is damaged in its folder, and repairs it unless that takes the network.
        """
        result = self._intact_result()
        found = job_state.look(self.config, self.job, self.root, self.data)
        if found.begun and self.config.resume == "never":
            raise ConfigError(f"output {self.root} holds a run already, and resume is never")
        job_state.refuse(self.config, found, self.root)
        if found.differing:
            job_state.set_aside(found, self.root)
        changes = job_state.environment_changes(self.config, found, surroundings(self.device))
        kept = found.kept and result is not None and repair.repair(self.folder, result)
        if result and not found.differing and (lacking := self.behaviour.lacks(self.config, result)):
            source = repair.source_of(self.folder)
            logger.warning("%s is needed and was never saved; made %s", self.folder / lacking, source)
        if kept:
            print(f"  finished before, not trained again{changes}", flush=True)
        elif changes:
            print(f"  resumes{changes}", flush=True)
        elif result is not None and not found.differing:
            self._seconds_before = result["seconds"]
        return kept

    def _intact_result(self) -> dict[str, Any] | None:
        """Return the job's result; None without one, or for a damaged one, which is named."""
        if not (self.folder / RESULT).exists():
            return None
        try:
            return run_files.read_result(self.folder)
        except DamagedError as error:
            logger.warning("%s; made again %s", error, repair.source_of(self.folder))
            return None

    def _compare_again(self) -> None:
        """Compare a finished network again, if one that it did not learn from was trained again since."""
        source = self.behaviour.compared_with(self.job)
        if source is None or source in self.behaviour.learns_from(self.config, self.job):
            return
        result = distributed.on_main(partial(run_files.read_result, self.folder))
        teacher = trained_digest(self.config, self.seed_folder, source)
        if teacher is None or result.get(COMPARED, teacher) == teacher:
            return
        distributed.say("  compared again, with the present teacher")
        compared = result | self._likeness(models.load(self.folder).to(self.device))
        distributed.on_main(partial(write_atomically, self.folder / RESULT, seal(compared)))


def _scores(row: dict[str, Any], prefix: str = "test_") -> dict[str, Any]:
    """Return the figures on the test set out of an epoch's row."""
    return {"epoch": row["epoch"], "top1": row[f"{prefix}top1"], "ce": row[f"{prefix}ce"]}
