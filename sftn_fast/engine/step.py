"""One optimisation step: forward, backward, clip, update."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sftn_fast.config import ConfigError, EmaConfig, EngineConfig
from sftn_fast.data import loaders
from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import distributed, dot, parallel
from sftn_fast.engine.compile import Compiled
from sftn_fast.engine.device import (
    Layout,
    amp_dtype,
    cudnn_benchmark,
    is_channels_last,
    uses_cudnn_benchmark,
)
from sftn_fast.engine.ema import EMA
from sftn_fast.engine.finite import FP16_PATIENCE, FiniteWatch, NonFiniteError, Snapshot
from sftn_fast.engine.graph import GraphedStep, Recorder, recorder
from sftn_fast.engine.optim import parameters_of, runs_on_device, state_of
from sftn_fast.engine.protocols import Batch, DeferredTrainData, FrozenTask, Task, Terms, TrainData
from sftn_fast.engine.rollback import rollback
from sftn_fast.engine.schedule import Schedule
from sftn_fast.engine.update import Update


class TrainStep:
    """One optimisation step: ``step(batch, number)`` trains the task on a batch and returns the named terms.

    Args:
        task: module that returns 0-dim terms, including "total"; already on the device.
        optimizer: one of :func:`~sftn_fast.engine.optim.build_optimizer`.
        schedule: learning rate by step number.
        layout: device and arithmetic. Below float32 the task runs under autocast, in float16 with a gradient scaler.
        clip_grad: largest norm of the gradient, or None.
        accumulate: number of parts a batch is split into, which are computed one after the other.
        compile: run the task under torch.compile, see :class:`~sftn_fast.engine.compile.Compiled`.
        record: records the step to replay it, see :class:`~sftn_fast.engine.graph.GraphedStep`; None for steps without
            a graph.
        must_record: raise an error if the step can't be recorded.
        find_unused: over several ranks, look for parameters without a gradient in each step.
        benchmark: let cuDNN time its algorithms for each new shape.
        teacher_optimizer: takes the gradient of all but the labels' part of the total; see
            :mod:`~sftn_fast.engine.dot`. The task must split its total, and ``clip_grad`` must be None.
        ema: average of the weights of the task's model, which each step updates; None for no average.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        layout: Layout,
        *,
        clip_grad: float | None = None,
        accumulate: int = 1,
        compile: bool = False,
        record: Recorder | None = None,
        must_record: bool = False,
        find_unused: bool = False,
        benchmark: bool = False,
        teacher_optimizer: torch.optim.Optimizer | None = None,
        ema: EMA | None = None,
    ):
        # Only the step uses the wrapper: everything else, checkpoints above all, needs the task's own names.
        self.module, self.optimizer, self.schedule = task, optimizer, schedule
        self.optimizers = [optimizer] if teacher_optimizer is None else [optimizer, teacher_optimizer]
        self.task = parallel.wrap(task, find_unused=find_unused)
        self._call = Compiled(self.task) if compile else self.task
        self.layout, self.clip_grad, self.accumulate = layout, clip_grad, accumulate
        self._benchmark, self.ema = benchmark, ema
        half = layout.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(layout.device.type, enabled=half)
        self.watch = FiniteWatch(layout.device, patience=FP16_PATIENCE if half else 1)
        self._buffers = list(task.buffers())
        self._snapshot = Snapshot(self._buffers) if half else None
        self._parameters = parameters_of(optimizer)
        # On the device, where a replayed step reads them. The fused update on a GPU needs float32.
        cpu = layout.device.type == "cpu"
        self._lr = torch.zeros((), dtype=torch.float64 if cpu else torch.float32, device=layout.device)
        self._number = torch.zeros((), dtype=torch.float64, device=layout.device)
        self._updates = [Update(each, self._lr) for each in self.optimizers]
        self._graphed = None
        if record is not None:
            self._graphed = GraphedStep(self._update, self.rollback, record, layout.device, must=must_record)

    def __call__(self, batch: Batch | DeferredBatch, number: int) -> Terms:
        """Train on ``batch`` as step ``number`` of the run, counted from 0.

        Returns:
            The task's terms, detached, with ``grad_norm`` (before clipping) and ``skipped`` (1 if the update was
            skipped, else 0): 0-dim tensors on the device, valid until the next step. Nothing here waits for a GPU.

        Raises:
            TypeError: the task's total is not a 0-dim float32 or float64 tensor.
            ConfigError: the step can't be recorded, and must be.
            NonFiniteError: on the CPU. On a GPU :meth:`check` raises it. Both skip the update.
        """
        self._lr.fill_(lr := self.schedule(number))
        for update in self._updates:
            update.set_lr(lr)
        if self.ema is not None:
            self.ema.begin_step(number)
        self._number.fill_(number)
        if self._graphed is not None:
            terms = self._graphed(DeferredBatch.of(cast(loaders.Batch | DeferredBatch, batch)))
        else:
            terms = self._update(batch.make(*batch.tensors) if isinstance(batch, DeferredBatch) else batch)
        # Reading the verdict is free on the CPU. On a GPU it would drain the queue at every step.
        if self.layout.device.type == "cpu":
            self.check()
        return terms

    def batches(self, loader: TrainData, epoch: int, start: int) -> Iterator[Batch] | Iterator[DeferredBatch]:
        """Return the batches of ``epoch`` from step ``start`` on; not yet augmented if replays do that as well."""
        if self._graphed is not None and isinstance(loader, DeferredTrainData):
            return loader.deferred_batches(epoch, start)
        return loader.epoch(epoch, start)

    def forget(self) -> None:
        """Discard recorded steps, because the task now computes differently."""
        if self._graphed is not None:
            self._graphed.forget()

    def store_frozen(self) -> Callable[[], None]:
        """Store the weights of networks that do not learn in the dtype of the steps, until the returned call.

        Under autocast they would be cast in every step. The steps' results do not change by a bit.
        """
        if not isinstance(self.module, FrozenTask):
            return lambda: None
        undo = self.module.store_frozen(self.layout.autocast())

        def restore() -> None:
            self.forget()  # a recorded step reads the stored weights
            undo()

        return restore

    def rollback(self) -> AbstractContextManager[None]:
        """Return a context that undoes the steps inside it, see :func:`~sftn_fast.engine.rollback.rollback`."""
        momenta = [value for optimizer in self.optimizers for value in state_of(optimizer)]
        averages = [] if self.ema is None else self.ema.state_dict().values()
        written = [*self._parameters, *self._buffers, *momenta, *averages, self.watch.streak]
        return rollback(written, self.scaler, self.layout.device)

    def _update(self, batch: Batch) -> Terms:
        """Run the device's part of the step: it reads nothing back and uses no number outside of tensors."""
        # Only here: training batches have one or two shapes, and each new one costs a search.
        with cudnn_benchmark(self._benchmark):
            return self._train(batch)

    def _train(self, batch: Batch) -> Terms:
        if self._snapshot is not None:
            self._snapshot.take()

        # Over several ranks the gradients are averaged while the last part's are computed.
        self.optimizer.zero_grad(set_to_none=True)
        terms: Terms = {}
        parts, split = self._parts(batch), len(self.optimizers) > 1
        both: list[dot.Gradients] = [[None] * len(self._parameters)] * 2
        for number_of_part, (share, part) in enumerate(parts, start=1):
            with parallel.no_sync(self.task, more_to_come=split or number_of_part < len(parts)):
                found = self._split(part, share, both) if split else self._backward(part, share)
            for name, term in found.items():
                terms[name] = terms[name] + term if name in terms else term
        if split:
            both = [dot.averaged(gradients) for gradients in both]
            self._give(dot.added(*both))
        self.scaler.unscale_(self.optimizer)

        # Not finite if any gradient is not. One pass serves the check, the log and the clipping.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        grad_norm = get_total_norm(gradients)
        values = {**terms, "grad_norm": grad_norm}
        skipped = self.watch.skip(values, self._number)
        if self._snapshot is not None:
            self._snapshot.restore_if(skipped > 0)
        if self.clip_grad is not None:
            clip_grads_with_norm_(self._parameters, self.clip_grad, grad_norm)

        # The verdict is ours, since the scaler's covers gradients only. The update is skipped exactly when the buffers
        # are restored, so that a skipped step leaves no trace.
        for number, update in enumerate(self._updates):
            if split:
                self._give(both[number])
            update(skipped)
        if self.ema is not None:
            self.ema.update(skipped)
        self.scaler.update()
        return {**values, "skipped": skipped}

    def _parts(self, batch: Batch) -> list[tuple[float, tuple[Tensor, Tensor, Tensor]]]:
        """Split the batch into parts of two images or more; return each with its share of the images."""
        parts = max(1, min(self.accumulate, len(batch.target) // 2))
        split = [tensor.tensor_split(parts) for tensor in (batch.images, batch.target, batch.index)]
        return [(len(part[1]) / len(batch.target), part) for part in zip(*split, strict=True)]

    def _forward(self, part: tuple[Tensor, Tensor, Tensor]) -> Terms:
        """Return the terms of ``part``: networks run in the chosen arithmetic, and losses return in float32."""
        images, target, index = part
        with self.layout.autocast():
            return self._call(self.layout.images(images), self.layout.indices(target), self.layout.indices(index))

    def _backward(self, part: tuple[Tensor, Tensor, Tensor], share: float) -> Terms:
        """Add the gradient of ``share`` times the loss of ``part``; return the detached terms times ``share``."""
        terms = self._forward(part)
        self.scaler.scale(share * _checked_total(terms)).backward()
        return {name: share * term.detach() for name, term in terms.items()}

    def _split(self, part: tuple[Tensor, Tensor, Tensor], share: float, both: list[dot.Gradients]) -> Terms:
        """Add both gradients of ``share`` times the loss of ``part`` to ``both``; return the terms times ``share``."""
        terms = self._forward(part)
        labels, total = terms.pop(dot.LABELS), _checked_total(terms)
        new = dot.split_gradients(share * total, share * labels, self._parameters)
        both[:] = [dot.added(old, more) for old, more in zip(both, new, strict=True)]
        return {name: share * term.detach() for name, term in terms.items()}

    def _give(self, gradients: dot.Gradients) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def check(self) -> None:
        """Raise :class:`NonFiniteError` if a step so far failed. Waits for the device."""
        failure = self.watch.failure()
        if failure is not None:
            terms, number = failure
            where = f"step {number + 1}, epoch {self.schedule.epoch(number)}, lr {self.schedule(number):g}"
            where += f", loss scale {self.scaler.get_scale():g}" if self.scaler.is_enabled() else ""
            raise NonFiniteError(terms, number + 1, where)


def build_step(
    task: Task,
    schedule: Schedule,
    engine: EngineConfig,
    device: torch.device,
    first_batch: Callable[[], Batch] | None = None,
    ema: EmaConfig | None = None,
) -> TrainStep:
    """Return the step that trains ``task`` by ``schedule`` and ``engine``, after moving the task to ``device``.

    Over several ranks, ``first_batch()`` returns a batch for finding out whether a step uses all of the task. Without
    it, the step is assumed to. With ``ema``, the step averages the weights of the task's model, if it has one.

    Raises:
        ConfigError: the device can't do what ``engine`` asks for.
        TypeError: ``task`` is not an ``nn.Module``.
        ValueError: no parameter of ``task`` requires a gradient.
    """
    model = task.model
    if not isinstance(task, nn.Module):
        raise TypeError(f"task must be an nn.Module, got {type(task).__name__}")
    optim = schedule.optim
    task.to(device)
    if engine.sync_batchnorm:
        parallel.synchronise_batchnorm(task, device)
    layout = Layout(device, amp_dtype(engine.amp, device), is_channels_last(engine, model, device))
    if layout.channels_last:
        task.to(memory_format=torch.channels_last)
    optimizer, of_teacher = dot.build_pair(task, optim, schedule(0))
    find_unused = False
    if first_batch is not None and distributed.world_size() > 1:
        find_unused = parallel.leaves_some_unused(task, first_batch(), layout)
    parts, clip = optim.accumulate, optim.clip_grad
    return TrainStep(
        task,
        optimizer,
        schedule,
        layout,
        clip_grad=clip,
        accumulate=parts,
        compile=engine.compile,
        record=_recorder(engine, optimizer, device),
        must_record=engine.cuda_graphs is True,
        find_unused=find_unused,
        benchmark=uses_cudnn_benchmark(engine, device),
        teacher_optimizer=of_teacher,
        ema=EMA(model, ema, device) if ema is not None and model is not None else None,
    )


def _recorder(engine: EngineConfig, optimizer: torch.optim.Optimizer, device: torch.device) -> Recorder | None:
    """Return the recorder of steps; None, after a line, for an optimizer that no graph can hold.

    Raises:
        ConfigError: there must be a graph.
    """
    found, name = recorder(engine.cuda_graphs, device), type(optimizer).__name__
    if found is None or runs_on_device(optimizer):
        return found
    if engine.cuda_graphs is True:
        raise ConfigError(f"engine.cuda_graphs must be auto or false with {name}, which reads its state on the host")
    print(f"engine.cuda_graphs: steps run without a graph; {name} reads its state on the host", file=sys.stderr)
    return None


def _checked_total(terms: Terms) -> Tensor:
    total = terms["total"]
    if total.ndim != 0 or total.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the task's total must be a 0-dim float32 tensor, got {total.dtype} of shape {[*total.shape]}")
    return total
