"""One implementation of one case in a separate process, which takes steps on request.

Run `python -m bench.training.worker DEVICE METHOD TEACHER STUDENT BATCH IMPLEMENTATION`. It answers each input line of
two numbers, uncounted and counted steps, with a line of JSON, and `profile` with the shares of the layers in a step. It
writes the first answer without a request, before the first step. It stops at the end of its input.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.measure import synchronize
from bench.training.cases import TrainingCase
from bench.training.split import Split, shares
from sftn_fast import ops
from sftn_fast.config import EngineConfig

ON_GPU = {"amp": "bf16", "channels_last": True}
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "ours": {},
        "ours, NCHW": {"channels_last": False},
        "ours, bf16": {"amp": "bf16"},
        "ours, compile": {"compile": True},
    },
    "cuda": {
        "ours": ON_GPU,
        "ours, float32": {**ON_GPU, "amp": "fp32"},
        "ours, no graphs": {**ON_GPU, "cuda_graphs": False},
        "ours, compile": {**ON_GPU, "compile": True},
    },
}
"""Options of the configuration's `engine` for each implementation of ours, on each device."""
USUAL: dict[str, dict[str, dict[str, bool]]] = {
    "cpu": {"eager": {}},
    "cuda": {"eager": {}, "eager, NHWC": {"channels_last": True}},
}
"""Options of :func:`bench.eager.training.training` for each implementation of the usual loop, on each device."""

PROFILE = "profile"
"""A request for one step under PyTorch's profiler."""

Train = Callable[[], object]


def training(case: TrainingCase, implementation: str, device: str) -> tuple[Iterator[Any], Callable[[Any], None]]:
    """Return the batches and the step that trains on one of them."""
    torch.manual_seed(0)
    if implementation in USUAL[device]:
        from bench.eager import training as eager

        return eager.training(case, device, **USUAL[device][implementation])
    from bench.training import ours

    return ours.training(case, EngineConfig(device=device, **OURS[device][implementation]))


def step_by_step(train: Train, count: int, split: Split | None) -> dict[str, list[Any]]:
    """Measure the time of each step, and of its parts where there are clocks."""
    seconds, parts = [], []
    for _ in range(count):
        if split is not None:
            split.take(0.0)
        start = time.perf_counter()
        train()
        seconds.append(time.perf_counter() - start)
        if split is not None:
            parts.append(split.take(seconds[-1]))
    return {"seconds": seconds, "split": parts}


def all_at_once(train: Train, count: int, device: str) -> dict[str, list[Any]]:
    """Measure the mean time of a step on a GPU, with one wait after all steps are queued."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        train()
    synchronize(device)
    return {"seconds": [(time.perf_counter() - start) / count], "split": []}


def peak_resident() -> int:
    """Return the peak memory of this process in bytes. getrusage would start with the parent's peak."""
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]
    return 1024 * int(kilobytes)


def answer(device: str, **fields: Any) -> None:
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
    print(json.dumps({"peak_bytes": peak, **fields}), flush=True)


def main() -> None:
    device, method, teacher, student, batch_size, implementation = sys.argv[1:]
    ops.set_backend("fused")
    split = None
    if device == "cpu" and implementation != "ours, compile":  # its compiler can't trace the clocks
        split = Split()
        split.watch_networks()
    batches, step = training(TrainingCase(method, teacher, student, int(batch_size)), implementation, device)
    next_batch = split.timed("data", lambda: next(batches)) if split else lambda: next(batches)

    def train() -> None:
        step(next_batch())

    answer(device)
    for line in sys.stdin:
        if line.strip() == PROFILE:
            answer(device, shares=shares(train))
            continue
        uncounted, counted = map(int, line.split())
        for _ in range(uncounted):
            train()
        on_gpu = device == "cuda"
        answer(device, **(all_at_once(train, counted, device) if on_gpu else step_by_step(train, counted, split)))


if __name__ == "__main__":
    main()
