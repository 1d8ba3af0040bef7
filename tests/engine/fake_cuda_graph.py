"""CUDA graphs without CUDA: records every operation that a function starts, and replays them on the same memory.

As with a graph, a replay runs no Python, recorded numbers stay the same, and results are written where they were at
the recording. Operations that would wait for the device are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from sftn_fast.engine.graph import WARM_UP

READS = ("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "_unique2", "masked_select")


class FakeGraph(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._operations: list[tuple[Callable[..., Any], tuple, dict, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        # Copies of lists, which their owner may empty.
        args, kwargs = tree_map(lambda leaf: leaf, (args, kwargs or {}))
        result = func(*args, **kwargs)
        self._operations.append((func, args, kwargs, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, recorded in self._operations:
            results = tree_leaves(func(*args, **kwargs))
            for result, place in zip(results, tree_leaves(recorded), strict=True):
                if isinstance(result, Tensor) and not _same_memory(result, place):
                    place.copy_(result)


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def record(function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """Record ``function``, see :data:`sftn_fast.engine.graph.Recorder`."""
    for _ in range(WARM_UP):
        function()
    graph = FakeGraph()
    with graph:
        terms = function()
    return graph.replay, terms
