"""What a call launches, and what each launch reads and writes, counted by the emulator on the grids of an H200."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.calculated.h200 import MULTIPROCESSORS
from sftn_fast import ops
from sftn_fast.ops import _backend, contrastive

COUNTED_BY_LAUNCH = (
    *("read", "read once", "read sectors", "written", "written once", "written sectors"),
    *("shared_read", "shared_written", "shuffles", "barriers", "exponentials", "roots"),
)
"""Bytes of all lanes, bytes that a warp's lanes share counted once, sectors; then see the emulator."""
SAMPLE = 8
"""Blocks run of a larger grid. Their counts stand for all of its blocks."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel. ``counted`` has bytes, sectors, shuffles, barriers and more of the whole grid."""

    kernel: str
    blocks: int
    threads: int
    dynamic_bytes: int
    counted: dict[str, float]

    @property
    def warps(self) -> int:
        return self.blocks * -(-self.threads // 32)


@dataclass(frozen=True)
class LibraryOp:
    """An operation of PyTorch that launches a kernel of its own."""

    name: str
    num_bytes: int
    flops: int


@dataclass(frozen=True)
class Launches:
    """What a call launches, forward and backward."""

    kernels: list[Launch]
    library: list[LibraryOp]
    memsets: int


def count(emulator: Any, call: Callable[[], Tensor], *, sample: int = SAMPLE) -> Launches:
    """Run a call and the backward pass of its result on the emulator; return what it launches.

    The results are wrong where a grid is sampled, so ``call`` must not branch on them. 0 runs all blocks.
    """
    names = emulator.kernel_names()
    emulator.reset()
    emulator.set_multiprocessors(MULTIPROCESSORS)
    emulator.sample_blocks(sample)
    emulator.count_accesses(True)
    library = _Library()
    try:
        with _as_on_a_gpu(), library:
            result = call()
        if result.requires_grad:
            gradient = torch.ones_like(result)  # in training, it comes from the operation behind the loss
            with _as_on_a_gpu(), library:
                result.backward(gradient)
        counted = emulator.counted_launches()
        return Launches([_scaled(launch, names) for launch in counted], library.ops, emulator.memsets())
    finally:
        emulator.reset()


@contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    choose = contrastive._dense
    with ExitStack() as stack:
        stack.enter_context(ops.backend("fused"))
        stack.enter_context(_backend._use_namespace("cpu", torch.ops.sftn_fast_emulated))
        # the choice of a path by shapes and device
        stack.enter_context(patch.object(contrastive, "_dense", lambda device, *shape: choose("cuda", *shape)))
        yield


def _scaled(launch: dict[str, Any], names: dict[int, str]) -> Launch:
    found: Counter[str] = Counter()
    for site in launch["sites"]:
        way = "written" if site["write"] else "read"
        found.update({way: site["lane_bytes"], f"{way} once": site["bytes"], f"{way} sectors": site["sectors"]})
    of_warps = ("shared_read", "shared_written", "shuffles", "barriers")
    found.update({name: launch[name] for name in (*of_warps, "exponentials", "roots")})
    scale = launch["blocks"] / launch["blocks_run"]
    counted = {name: scale * found[name] for name in COUNTED_BY_LAUNCH}
    kernel = names[launch["kernel"]]
    return Launch(kernel, launch["blocks"], launch["threads"], launch["dynamic_bytes"], counted)


class _Library(TorchDispatchMode):
    """Records PyTorch's own operations that launch a kernel: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[LibraryOp] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = any(value.alias_info and not value.alias_info.is_write for value in returns)
        allocates = re.match(r"aten::(new_)?empty", func.name())
        if func.namespace == "aten" and not is_view and not allocates:
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
            flops = flop_registry.get(func._overloadpacket)
            self.ops.append(
                LibraryOp(
                    func.name(),
                    sum(x.nbytes for x in tensors),
                    flops(*args, **(kwargs or {}), out_val=result) if flops else 0,
                )
            )
        return result
