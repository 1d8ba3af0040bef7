"""A step recorded once as a CUDA graph and replayed: one launch instead of hundreds.

A replay runs the same kernels on the same memory and no Python. Everything that changes between steps must therefore be
in tensors that stay in place: the batch, which is copied to the recorded one's memory, the learning rate, the step's
number and whatever the step writes. Each replay draws new random numbers, from the streams that the step would use
without a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from sftn_fast.config import ConfigError, check
from sftn_fast.data.loaders import DeferredBatch
from sftn_fast.engine import distributed
from sftn_fast.engine.protocols import Batch, Terms

WARM_UP = 3
"""Steps before the recording, in which libraries choose algorithms and allocate, as PyTorch's documentation advises."""

Recorder = Callable[[Callable[[], Terms]], tuple[Callable[[], None], Terms]]
"""Calls a function some times and records it. Returns a function that replays it and the results that replays fill."""


@dataclass(frozen=True)
class _Recording:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    terms: Terms


class GraphedStep:
    """``step(batch)`` recorded once for each shape of batch, then replayed.

    The steps before and during a recording are rolled back. Every step of a run is therefore a replay, also after a
    resume. If the step can't be recorded, a line on stderr says why and all steps run without a graph.

    Args:
        step: trains on the batch ``make(*tensors)`` without waiting for the device.
        rollback: context that undoes the steps taken inside it.
        record: see :data:`Recorder`.
        device: where recorded batches are.
        must: raise an error if the step can't be recorded.
    """

    def __init__(
        self,
        step: Callable[[Batch], Terms],
        rollback: Callable[[], AbstractContextManager[None]],
        record: Recorder,
        device: torch.device,
        *,
        must: bool = False,
    ) -> None:
        self._step, self._rollback, self._record = step, rollback, record
        self._device, self._must = device, must
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._gave_up = False
        self._previous: DeferredBatch | None = None

    def __call__(self, batch: DeferredBatch) -> Terms:
        """Return the step's terms. The next replay overwrites them.

        Raises:
            ConfigError: the step can't be recorded, and must be.
        """
        terms = self._run(batch)
        # Released after the step: DALI waits for the device when it frees a batch, which a recording forbids.
        self._previous = batch
        return terms

    def _run(self, batch: DeferredBatch) -> Terms:
        key = (batch.make, *(tensor.shape for tensor in batch.tensors))
        if key not in self._recordings and not self._gave_up:
            self._try_recording(key, batch)
        if self._gave_up:
            return self._step(batch.make(*batch.tensors))
        recording = self._recordings[key]
        for recorded, given in zip(recording.inputs, batch.tensors, strict=True):
            recorded.copy_(given, non_blocking=True)
        recording.replay()
        return recording.terms

    def forget(self) -> None:
        """Discard all recordings: the step now reads other tensors, or numbers that are not in tensors."""
        self._recordings.clear()

    def _try_recording(self, key: tuple[object, ...], batch: DeferredBatch) -> None:
        inputs = tuple(torch.empty_like(tensor, device=self._device).copy_(tensor) for tensor in batch.tensors)
        try:
            with self._rollback():
                replay, terms = self._record(lambda: self._step(batch.make(*inputs)))
        except Exception as error:
            reason = f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), 'no reason given')}"
            if self._must:
                raise ConfigError(
                    f"engine.cuda_graphs is true, but the step can't be captured ({reason}); use auto"
                ) from error
            print(f"engine.cuda_graphs: not captured, steps run without a graph; {reason}", file=sys.stderr)
            self._gave_up = True
            self._recordings.clear()
            return
        self._recordings[key] = _Recording(inputs, replay, terms)


def recorder(choice: bool | str, device: torch.device) -> Recorder | None:
    """Return the recorder for ``EngineConfig.cuda_graphs`` on ``device``, None for steps without graphs.

    Raises:
        ConfigError: graphs are requested where there are none.
    """
    possible = device.type == "cuda" and distributed.world_size() == 1
    if choice == "auto":
        choice = possible
    check(possible or not choice, "engine.cuda_graphs", choice, "auto or false on the CPU and over several ranks")
    return _CUDARecorder(device) if choice else None


class _CUDARecorder:
    """A :data:`Recorder` of CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, function: Callable[[], Terms]) -> tuple[Callable[[], None], Terms]:
        with torch.cuda.device(self._device):
            # One stream for both: libraries keep buffers for each stream, which the warm-up then allocates.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # "thread_local" lets threads that decode images allocate during the recording.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                terms = function()
        return graph.replay, terms
