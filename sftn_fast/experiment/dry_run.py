"""What a run would do and cost: ``python -m sftn_fast.train --dry-run``.

Builds every network and trains each kind of job for a few steps on its real images; untrained networks replace those
that the run would have trained. Writes nothing. Memory is counted from what a step holds. Times are measured: they are
those of this machine at this moment.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sftn_fast import cli, engine, models
from sftn_fast.config import Config
from sftn_fast.data import ImageData
from sftn_fast.distillers.method import InitTask
from sftn_fast.engine import distributed
from sftn_fast.engine.fingerprint import listing
from sftn_fast.engine.optim import state_of
from sftn_fast.engine.protocols import Splits
from sftn_fast.experiment import networks, repair
from sftn_fast.experiment.job_state import JobState
from sftn_fast.experiment.kinds.snapshots import snapshot_epochs
from sftn_fast.experiment.plan import Job
from sftn_fast.experiment.run import prepare, say_precision, worker_on
from sftn_fast.experiment.teacher_cache import policy
from sftn_fast.experiment.untrained import UntrainedRunner
from sftn_fast.experiment.worker import Worker
from sftn_fast.ops import CRDMemory
from sftn_fast.tasks import CollaborativeTask, DistillTask, Route, SFTNTask, Task
from sftn_fast.utils.format import readable_bytes
from sftn_fast.utils.progress import duration

TIMED_STEPS = 3  # after a first one, which is slower than the rest
TIMED_BATCHES = 2  # of an evaluation


def run(config: Config) -> None:
    """Print what :func:`sftn_fast.experiment.run.run` would do with ``config``, and what that would cost.

    Raises:
        ConfigError: The run would be refused before its first job.
    """
    with engine.process_group(config.engine.device):
        root = engine.RunFolder(config.output).path
        checked, source, jobs, devices, worker, states = prepare(config, root)
        worker = worker or worker_on(devices[0], checked, root)
        images = worker.images_of(jobs[0].seed)
        say_precision(checked, devices)
        if checked.cache_teacher:
            policy.check_run(checked, images, source or root)
        distributed.say(f"\n{cli.dump(replace(config, methods=checked.methods))}\n{_about(images)}\n")
        for line in _networks(config, images):
            distributed.say(line)
        kept = {job for job, state in states.items() if state.kept}
        rests = {job: _rest(checked, states.get(job), job, source or root) for job in jobs}
        costs = _costs(worker, jobs, images, rests)
        left = sum(rests[job].seconds(cost) for job, cost in costs.items())
        peak = max(cost.memory for cost in costs.values())
        beside = f"beside {readable_bytes(_resident(images))} of images"
        if checked.cache_teacher:
            beside += f" and {readable_bytes(policy.epoch_bytes(checked, images))} of the teacher's logits"
        distributed.say(f"\nmemory: {readable_bytes(peak)} for the largest job, {beside}")
        disk = sum(cost.disk for job, cost in costs.items() if job not in kept)
        distributed.say(f"disk: {readable_bytes(disk)} for checkpoints and networks, with those of the best epochs")
        if checked.cache_teacher:
            files = readable_bytes(policy.missing_bytes(checked, images, source or root))
            distributed.say(f"disk: {files} of teachers' logits that are not there yet")
        many = f" of one device's work, for {len(devices)} of them" if len(devices) > 1 else ""
        how = f"from {TIMED_STEPS} steps of each kind of job, timed just now on {worker.device}"
        what = f"{duration(left)}{many}, an estimate {how}" if left else "nothing left to do"
        distributed.say(f"time: {what}\nnothing was trained, nothing written")


@dataclass(frozen=True)
class Cost:
    """Cost of one job: seconds on one device, bytes of memory at its peak, and bytes on the disk when it ends."""

    seconds: float
    memory: int
    disk: int
    first_seconds: float = 0.0
    """Seconds of a method's initialisations, which come before."""


@dataclass(frozen=True)
class Rest:
    """What is left of a job, from 0 to 1: of its initialisations and of the job proper."""

    initialisations: float
    proper: float
    words: str = ""
    """What the run would do about the job, up to the time that this takes."""

    def seconds(self, cost: Cost) -> float:
        """Return how long that takes, on one device."""
        return self.initialisations * cost.first_seconds + self.proper * cost.seconds


WHOLE = Rest(1.0, 1.0)


def _rest(config: Config, state: JobState | None, job: Job, root: Path) -> Rest:
    """Return what is left of ``job``."""
    if state is None:
        return WHOLE
    if state.differing:
        return replace(WHOLE, words=f"trained again, since {listing(state.differing)}; ")
    if state.kept:
        folder = job.folder(root)
        if not (damage := repair.lost(folder)):
            return Rest(0.0, 0.0, "has its result already")
        name, fault = next(iter(damage.items()))
        words = f"{name} {fault}; made again {repair.source_of(folder)}; "
        return Rest(0.0, 0.0, words) if repair.has_checkpoint(folder) else replace(WHOLE, words=words)
    if not state.epochs:
        return WHOLE
    share = 1 - min(1.0, state.epochs / config.epochs_of(job.kind))
    return Rest(0.0, share, f"resumes after epoch {state.epochs}; ")


def _costs(worker: Worker, jobs: Sequence[Job], images: ImageData, rests: Mapping[Job, Rest]) -> dict[Job, Cost]:
    """Try each kind of job once; print what each job is and costs."""
    kinds: dict[tuple[str, str | None], Cost] = {}
    costs = {}
    for number, job in enumerate(jobs, start=1):
        kind = (job.kind, job.method)  # whichever the teacher: both are the same network
        apart = "" if kind in kinds else "\n"
        what = job.behaviour.describe(worker.config, job)
        distributed.say(f"{apart}[{number}/{len(jobs)}] seed {job.seed}: {what}")
        if kind not in kinds:
            kinds[kind] = CostProbe(worker.config, job, worker.root, worker.device, images).cost()
        costs[job] = kinds[kind]
        rest = rests[job]
        seconds = rest.seconds(costs[job])
        distributed.say(f"  {rest.words}{duration(seconds) if seconds or rest.words.endswith('; ') else ''}")
    return costs


class CostProbe(UntrainedRunner):
    """Runs a few steps of a job."""

    def snapshot_of(self, teacher: str, epoch: int) -> models.StagedNet:
        """Return an untrained teacher."""
        return self.build(self.config.teacher)

    def route(self) -> Route | None:
        """Return None: there are no snapshots yet."""
        return None

    def cost(self) -> Cost:
        """Train a few steps; print what the job holds and how long it takes."""
        if not self.behaviour.trains(self.config):
            source, network = self.behaviour.measured(self)
            distributed.say(f"  {source} fits; it is measured and not trained")
            seconds = self._evaluation(network.to(self.device), engine.Layout(self.device))
            size = _bytes(network.state_dict().values())
            return Cost(seconds, size, size)
        task, epochs = self.task(), self.config.epochs_of(self.job.kind)
        costs = []
        if isinstance(task, DistillTask):
            for name, first in task.distiller.initialisations():
                distributed.say(f"  initialisation of {name}:")
                costs.append(self._fit_cost(first.task, first.epochs))
                first.task.finish()
        costs.append(self._fit_cost(task, epochs))
        before, disk = sum(cost.seconds for cost in costs[:-1]), sum(cost.disk for cost in costs)
        return Cost(costs[-1].seconds, max(cost.memory for cost in costs), disk, before)

    def _fit_cost(self, task: Task | InitTask, epochs: int) -> Cost:
        """Return the cost of training ``task`` for ``epochs``."""
        optim = self.config.optim_of("student" if isinstance(task, InitTask) else self.job.kind)
        steps = engine.steps_an_epoch(self.data, optim)
        # A tiny learning rate keeps untrained networks from diverging.
        schedule = engine.Schedule(optim, 1e-9, steps, epochs)
        ema = None if isinstance(task, InitTask) else self.behaviour.ema(self.config)
        train_step = engine.build_step(task, schedule, self.config.engine, self.device, ema=ema)
        train_step.store_frozen()
        batches = list(islice(_endless(self.images_for(task)), 1 + TIMED_STEPS))
        memory = self._memory(task.train(), train_step, batches[0])
        if self.config.engine.threads == "auto" and self.device.type == "cpu":
            torch.set_num_threads(engine.fastest_threads(train_step, batches[0]))
        seconds = statistics.median(
            [_seconds(partial(train_step, batch, number), self.device) for number, batch in enumerate(batches)][1:]
        )
        evaluations = (
            0 if task.model is None else -(-epochs // self.config.engine.eval_every) * (1 if ema is None else 2)
        )
        evaluation = 0.0 if task.model is None else self._evaluation(task.model, train_step.layout)
        tested = f"; an evaluation {1000 * evaluation:.0f} ms, {evaluations} of them" if evaluations else ""
        distributed.say(f"  a step {1000 * seconds:.1f} ms, {steps} of them an epoch, {epochs} epochs{tested}")
        whole = epochs * steps * seconds + evaluations * evaluation
        return Cost(whole, memory, self._disk(task, train_step, epochs, steps))

    def _evaluation(self, network: nn.Module, layout: engine.Layout) -> float:
        """Return the seconds that one evaluation of ``network`` takes."""
        splits = [split for split in (self.data.val, self.data.test) if split is not None]
        some = list(islice(self.data.test, TIMED_BATCHES))
        seconds = _seconds(lambda: engine.evaluate(network, some, layout), self.device)
        return seconds * sum(split.num_samples for split in splits) / max(1, sum(len(batch.target) for batch in some))

    def _disk(self, task: Task | InitTask, train_step: engine.TrainStep, epochs: int, steps: int) -> int:
        """Return the bytes of the files that hold networks when the training of ``task`` has ended."""
        network = 0 if task.model is None else _bytes(task.model.state_dict().values())
        state = _bytes(task.state_dict().values())
        peers = state - network if isinstance(task, CollaborativeTask) else 0
        branch = task.student_aware.earliest_branch()[1] if isinstance(task, SFTNTask) else {}
        anchors = len(snapshot_epochs(self.config, self.job.kind)) if self.behaviour.teaches else 0
        saved = -(-epochs * steps // (self.config.engine.checkpoint_every or steps))
        checkpoints = min(self.config.engine.keep_checkpoints, saved)
        # A checkpoint and the job's folder have the network of the best epoch too, and its average.
        others = 1 if train_step.ema is None else 2
        held = state + _optimizer_bytes(train_step) + others * network
        return checkpoints * held + (1 + others + anchors) * network + peers + _bytes(branch.values())

    def _memory(self, task: Task | InitTask, train_step: engine.TrainStep, batch: Any) -> int:
        """Return the bytes that a step holds; print them by purpose."""
        banks = [m for m in task.modules() if isinstance(m, CRDMemory)]
        sizes = {
            "weights": _bytes(task.state_dict().values()) - sum(_bytes(bank.buffers()) for bank in banks),
            "gradients": _bytes(p for p in task.parameters() if p.requires_grad),
            "momentum": _optimizer_bytes(train_step),
            "average": 0 if train_step.ema is None else _bytes(train_step.ema.state_dict().values()),
            "frozen networks": sum(_bytes(network.state_dict().values()) for network in _held(task)),
            "CRD's banks": sum(_bytes(bank.buffers()) for bank in banks),
            "activations": _activations(task, train_step, batch),
        }
        distributed.say("  learning: " + ", ".join(f"{name} {count:,}" for name, count in _parameters(task)))
        held = ", ".join(f"{name} {readable_bytes(size)}" for name, size in sizes.items() if size)
        distributed.say(f"  memory: {readable_bytes(sum(sizes.values()))}: {held} (of {len(batch.target)} images)")
        return sum(sizes.values())


def _optimizer_bytes(train_step: engine.TrainStep) -> int:
    """Return the bytes that the optimizers keep between steps: momenta and the like."""
    return sum(_bytes(state_of(optimizer)) for optimizer in train_step.optimizers)


def _parameters(task: Task | InitTask) -> list[tuple[str, int]]:
    """Return the number of parameters that learn, by network."""

    def learning(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad)

    if task.model is None:
        return [("parameters", learning(task))]
    beside = {SFTNTask: "branches", DistillTask: "adapters", CollaborativeTask: "peers"}.get(type(task), "others")
    network, others = learning(task.model), learning(task) - learning(task.model)
    return [(task.model.name, network), *([(beside, others)] if others else [])]


def _held(task: Task | InitTask) -> tuple[nn.Module, ...]:
    """Return the networks that a task reads and does not train."""
    return task.distiller.teachers if isinstance(task, DistillTask) else ()


def _activations(task: nn.Module, train_step: engine.TrainStep, batch: Any) -> int:
    """Return the bytes that the forward pass of one part of ``batch`` keeps for the backward pass."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*task.parameters(), *task.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    layout, images = train_step.layout, batch.images[: len(batch.target) // train_step.accumulate]
    target, index = layout.indices(batch.target[: len(images)]), layout.indices(batch.index[: len(images)])
    with layout.autocast(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        task(layout.images(images), target, index)
    return sum(kept.values())


def _endless(images: Splits) -> Iterable[Any]:
    """Yield training batches without end, however few an epoch has."""
    return chain.from_iterable(images.train.epoch(epoch) for epoch in count())


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def _about(images: ImageData) -> str:
    size = f"{images.in_channels} x {images.image_size} x {images.image_size}"
    val = f", {images.val.num_samples} for validation" if images.val else ""
    part = f", {images.of_students.num_train} of them for students" if images.of_students else ""
    counts = f"{images.num_train} training images of {size}{part}{val}, {images.test.num_samples} for the test"
    return f"data {images.name}: {images.num_classes} classes, {counts}, {readable_bytes(_resident(images))}"


def _networks(config: Config, images: ImageData) -> Iterable[str]:
    """Yield a line for each network of the experiment, with its size."""
    roles = {"teacher": config.teacher, "student": config.student}
    if "collaborate" in config.stages:
        roles |= {f"peer {number}": name for number, name in enumerate(config.collaborate.networks, start=1)}
    for role, name in roles.items():
        network = networks.build(name, images)
        seen = network.probe(images.image_size).stages
        shapes = " -> ".join("x".join(map(str, map_.shape[1:])) for map_ in seen)
        yield f"{role} {name}: {sum(p.numel() for p in network.parameters()):,} parameters, stages {shapes}"


def _resident(images: ImageData) -> int:
    """Return the bytes of the splits that are held in memory."""
    loaders = (images.train, images.of_students and images.of_students.train, images.val, images.test)
    splits = [getattr(loader, "data", None) for loader in loaders if loader is not None]
    return sum(_bytes((split.pixels, split.labels)) for split in splits if split is not None)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
