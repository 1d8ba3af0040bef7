"""A step recorded once and replayed from then on: a CUDA graph, which costs the host one launch instead of hundreds.

A replay runs the same kernels on the same memory and no Python, so all that changes from step to step has to lie in
tensors that stay where they are: the batch, which is copied to where the recorded one was, the learning rate, the
step's number, and what the step itself writes. Random numbers are new in every replay, from the same streams that the
step would have drawn from without a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from sftn_fast.config import ConfigError, check
from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import distributed

WARM_UP = 3
"""Steps before the recording, in which libraries choose algorithms and allocate; as PyTorch's documentation has it."""

Terms = dict[str, Tensor]
Recorder = Callable[[Callable[[], Terms]], tuple[Callable[[], None], Terms]]
"""Calls a function some times and records it; gives what replays it, and what it returned, which replays fill."""


class Replays:
    """``step(batch)`` recorded for each shape of batch at its first, and replayed for it and every later one.

    The steps before and during a recording leave no trace, so that every step of a run is a replay, also of one that
    goes on from a checkpoint. If a step can't be recorded, a line on stderr says why and all steps run as they are.

    Args:
        step: trains on the batch that ``make(*tensors)`` is, without waiting for the device.
        rehearsal: context that undoes what is done to the weights inside it.
        record: see :data:`Recorder`.
        device: where recorded batches lie.
        must: what can't be recorded is an error.
    """

    def __init__(
        self,
        step: Callable[[Any], Terms],
        rehearsal: Callable[[], AbstractContextManager[None]],
        record: Recorder,
        device: torch.device,
        *,
        must: bool = False,
    ) -> None:
        self._step, self._rehearsal, self._record = step, rehearsal, record
        self._device, self._must = device, must
        self._recorded: dict[tuple[Any, ...], tuple[tuple[Tensor, ...], Callable[[], None], Terms]] = {}
        self._gave_up = False

    def __call__(self, batch: DeferredBatch) -> Terms:
        """The step's terms. They lie where the next replay writes its own.

        Raises:
            ConfigError: the step can't be recorded, and must be.
        """
        key = (batch.make, *(tensor.shape for tensor in batch.tensors))
        if key not in self._recorded and not self._gave_up:
            self._try_recording(key, batch)
        if self._gave_up:
            return self._step(batch.make(*batch.tensors))
        inputs, replay, terms = self._recorded[key]
        for recorded, given in zip(inputs, batch.tensors, strict=True):
            recorded.copy_(given, non_blocking=True)
        replay()
        return terms

    def forget(self) -> None:
        """Record anew from the next step on: a step reads other tensors now, or other numbers that lie in none."""
        self._recorded.clear()

    def _try_recording(self, key: tuple[Any, ...], batch: DeferredBatch) -> None:
        inputs = tuple(torch.empty_like(tensor, device=self._device).copy_(tensor) for tensor in batch.tensors)
        try:
            with self._rehearsal():
                replay, terms = self._record(lambda: self._step(batch.make(*inputs)))
        except Exception as error:
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
            if self._must:
                raise ConfigError(
                    f"engine.cuda_graphs is true, but the step can't be captured ({reason}); use auto"
                ) from error
            print(f"engine.cuda_graphs: not captured, steps run without a graph; {reason}", file=sys.stderr)
            self._gave_up = True
            self._recorded.clear()
            return
        self._recorded[key] = inputs, replay, terms


def recorder(choice: bool | str, device: torch.device) -> Recorder | None:
    """What ``EngineConfig.cuda_graphs`` means on ``device``; None for steps without graphs.

    Raises:
        ConfigError: graphs are asked for where there are none.
    """
    possible = device.type == "cuda" and distributed.world_size() == 1
    if choice == "auto":
        choice = possible
    check(possible or not choice, "engine.cuda_graphs", choice, "auto or false on the CPU and over several ranks")
    return _CUDARecorder(device) if choice else None


class _CUDARecorder:
    """A :data:`Recorder`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, function: Callable[[], Terms]) -> tuple[Callable[[], None], Terms]:
        with torch.cuda.device(self._device):
            # One stream for both: what libraries keep for a stream, they keep from the warm-up on.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Threads that decode images may go on allocating meanwhile.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                terms = function()
        return graph.replay, terms
