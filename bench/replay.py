"""Steps as CUDA graphs: their time on the GPU, without the launches by Python that a small loss otherwise waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sftn_fast.engine.graph import WARM_UP

CALLS = 10
"""Calls in a graph. The launch of a graph costs some microseconds, as many as a small loss; here ten calls share it."""


@dataclass(frozen=True)
class Replay:
    """A graph of ``calls`` calls of a step."""

    graph: torch.cuda.CUDAGraph
    calls: int

    def __call__(self) -> None:
        self.graph.replay()


def replayed(step: Callable[[], object], calls: int = CALLS) -> Replay | None:
    """Return a step as a graph, or None if it waits for the host, which no graph can.

    A failed recording would spoil the random generators of the process, so a trial looks for waits first.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
        if waits(step):
            torch.cuda.current_stream().wait_stream(stream)
            return None
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            step()
    return Replay(graph, calls)


def waits(step: Callable[[], object]) -> bool:
    """Return whether a call of ``step`` waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
