"""One optimisation step: forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sftn_fast.config import EngineConfig
from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import distributed, parallel
from sftn_fast.engine.compile import Compiled
from sftn_fast.engine.device import Layout, amp_dtype, is_channels_last, keep_freed_memory
from sftn_fast.engine.finite import FP16_PATIENCE, BufferSnapshot, FiniteWatch, NonFiniteError
from sftn_fast.engine.graph import Recorder, Replays, recorder
from sftn_fast.engine.optim import Schedule, build_sgd
from sftn_fast.engine.rehearsal import rehearsal


class TrainStep:
    """Calls the task on a batch and updates what learns; ``step(batch, number)`` gives the named terms.

    Args:
        task: module that gives 0-dim terms, "total" among them; moved to ``device`` already.
        optimizer: a fused SGD, see :func:`~sftn_fast.engine.optim.build_sgd`.
        schedule: learning rate by step number.
        layout: device and arithmetic; below float32 the task runs under autocast, in float16 with a gradient scaler.
        clip_grad: largest norm of the gradient, or None.
        accumulate: parts that a batch is computed in, one after the other.
        compile: run the task under torch.compile, see :class:`~sftn_fast.engine.compile.Compiled`.
        record: records the step once, to replay it from then on, see :class:`~sftn_fast.engine.graph.Replays`; None for
            steps that run as they are.
        must_record: what can't be recorded is an error.
        find_unused: over several ranks, look in each step for parameters that get no gradient.
    """

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.SGD,
        schedule: Schedule,
        layout: Layout,
        *,
        clip_grad: float | None = None,
        accumulate: int = 1,
        compile: bool = False,
        record: Recorder | None = None,
        must_record: bool = False,
        find_unused: bool = False,
    ):
        # The wrapper is for the step alone: all else, checkpoints above all, knows the task by its own names.
        self.task, self.optimizer, self.schedule = parallel.wrap(task, find_unused=find_unused), optimizer, schedule
        self._call = Compiled(self.task) if compile else self.task
        self.layout, self.clip_grad, self.accumulate = layout, clip_grad, accumulate
        half = layout.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(layout.device.type, enabled=half)
        self.watch = FiniteWatch(layout.device, patience=FP16_PATIENCE if half else 1)
        self._buffers = list(task.buffers())
        self._snapshot = BufferSnapshot(task) if half else None
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        # On the device, where a replayed step reads them. The fused update on a GPU takes float32 alone.
        cpu = layout.device.type == "cpu"
        self._lr = torch.zeros((), dtype=torch.float64 if cpu else torch.float32, device=layout.device)
        self._number = torch.zeros((), dtype=torch.float64, device=layout.device)
        self._replays = None
        if record is not None:
            self._replays = Replays(self._update, self.rehearsal, record, layout.device, must=must_record)

    def __call__(self, batch: Any, number: int) -> dict[str, Tensor]:
        """Train on ``batch`` as step ``number`` of the run, counted from 0.

        Returns:
            The task's terms, detached, with ``grad_norm`` (before clipping) and ``skipped`` (1 where the update was
            left out, else 0): 0-dim tensors on the device, good until the next step. Nothing here waits for a GPU.

        Raises:
            TypeError: the task's total is not a 0-dim float32 or float64 tensor.
            ConfigError: the step can't be recorded, and must be.
            NonFiniteError: on the CPU. On a GPU :meth:`check` raises it. The update is left out on either.
        """
        self._lr.fill_(self.schedule(number))
        self._number.fill_(number)
        terms = self._update(batch) if self._replays is None else self._replays(DeferredBatch.of(batch))
        # Reading the verdict costs nothing here; on a GPU it would drain the queue at every step.
        if self.layout.device.type == "cpu":
            self.check()
        return terms

    def batches(self, loader: Any, epoch: int, start: int) -> Iterator[Any]:
        """The batches of ``epoch`` from step ``start`` on; yet to be augmented, where replays do that as well."""
        if self._replays is not None and hasattr(loader, "deferred_batches"):
            return loader.deferred_batches(epoch, start)  # type: ignore[no-any-return]
        return loader.epoch(epoch, start)  # type: ignore[no-any-return]

    def forget(self) -> None:
        """Told when the task computes otherwise than before: what was recorded is good no longer."""
        if self._replays is not None:
            self._replays.forget()

    def rehearsal(self) -> AbstractContextManager[None]:
        """Context whose steps leave no trace, see :func:`~sftn_fast.engine.rehearsal.rehearsal`."""
        momenta = [value for state in self.optimizer.state.values() for value in state.values()]
        written = [*self._parameters, *self._buffers, *momenta, self.watch.streak]
        return rehearsal(written, self.scaler, self.layout.device)

    def _update(self, batch: Any) -> dict[str, Tensor]:
        """The step, as far as it is the device's: it reads nothing back, and no number that lies in no tensor."""
        if self._snapshot is not None:
            self._snapshot.take()

        # Over several ranks the gradients are averaged while the last part's are computed.
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = {}
        parts = self._parts(batch)
        for number_of_part, (share, part) in enumerate(parts, start=1):
            with parallel.apart(self.task, until_last=number_of_part < len(parts)):
                for name, term in self._backward(part, share).items():
                    terms[name] = terms[name] + term if name in terms else term
        self.scaler.unscale_(self.optimizer)

        # One number, not finite as soon as one gradient is not: a single pass serves the check, the log, the clipping.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        grad_norm = get_total_norm(gradients)
        values = {**terms, "grad_norm": grad_norm}
        skipped = self.watch.skip(values, self._number)
        if self._snapshot is not None:
            self._snapshot.restore_if(skipped > 0)
        if self.clip_grad is not None:
            clip_grads_with_norm_(self._parameters, self.clip_grad, grad_norm)

        # The fused update reads the verdict on the device. It is ours and not the scaler's, which looks at gradients
        # only: the update is left out exactly when the buffers went back, so that a skipped step leaves no trace.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr
        self.optimizer.step()
        self.scaler.update()
        return {**values, "skipped": skipped}

    def _parts(self, batch: Any) -> list[tuple[float, tuple[Tensor, Tensor, Tensor]]]:
        """The batch in parts of two images or more, each with its share of the images."""
        parts = max(1, min(self.accumulate, len(batch.target) // 2))
        split = [tensor.tensor_split(parts) for tensor in (batch.images, batch.target, batch.index)]
        return [(len(part[1]) / len(batch.target), part) for part in zip(*split, strict=True)]

    def _backward(self, part: tuple[Tensor, Tensor, Tensor], share: float) -> dict[str, Tensor]:
        """Add the gradient of ``share`` times the loss of ``part``; the terms, detached, times ``share``."""
        images, target, index = part
        # The networks in the chosen arithmetic; the losses come back in float32.
        with self.layout.autocast():
            terms = self._call(self.layout.images(images), self.layout.indices(target), self.layout.indices(index))
        self.scaler.scale(share * _checked_total(terms)).backward()
        return {name: share * term.detach() for name, term in terms.items()}

    def check(self) -> None:
        """Raise :class:`NonFiniteError` if a step so far had to be given up. Waits for the device."""
        failure = self.watch.failure()
        if failure is not None:
            terms, number = failure
            where = f"step {number + 1}, epoch {self.schedule.epoch(number)}, lr {self.schedule(number):g}"
            where += f", loss scale {self.scaler.get_scale():g}" if self.scaler.is_enabled() else ""
            raise NonFiniteError(terms, number + 1, where)


def build_step(
    task: Any,
    schedule: Schedule,
    engine: EngineConfig,
    device: torch.device,
    first_batch: Callable[[], Any] | None = None,
) -> TrainStep:
    """The step that trains ``task`` as ``schedule`` and ``engine`` say; moves it to ``device`` and lays it out there.

    Over several ranks ``first_batch()`` gives a batch to find out with whether a step uses all of the task; without it
    that is taken for granted.

    Raises:
        ConfigError: the device can't do what ``engine`` asks for.
        ValueError: nothing in ``task`` requires grad.
    """
    optim = schedule.optim
    task.to(device)
    if engine.sync_batchnorm:
        parallel.synchronise_batchnorm(task, device)
    layout = Layout(device, amp_dtype(engine.amp, device), is_channels_last(engine.channels_last, task.model, device))
    if layout.channels_last:
        task.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
    sgd = build_sgd(task, optim, schedule.lr)
    several = first_batch is not None and distributed.world_size() > 1
    find_unused = several and parallel.leaves_some_unused(task, first_batch(), layout)  # type: ignore[misc]
    parts, clip = optim.accumulate, optim.clip_grad
    return TrainStep(
        task,
        sgd,
        schedule,
        layout,
        clip_grad=clip,
        accumulate=parts,
        compile=engine.compile,
        record=recorder(engine.cuda_graphs, device),
        must_record=engine.cuda_graphs is True,
        find_unused=find_unused,
    )


def _checked_total(terms: dict[str, Tensor]) -> Tensor:
    total = terms["total"]
    if total.ndim != 0 or total.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"the task's total must be a 0-dim float32 tensor, got {total.dtype} of shape {[*total.shape]}")
    return total
