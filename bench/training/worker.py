"""One implementation of one case, in a process of its own, which takes steps when it is told to.

`python -m bench.training.worker DEVICE METHOD TEACHER STUDENT BATCH IMPLEMENTATION` answers each line of two numbers,
steps that do not count and steps that do, by a line of JSON; the first answer, unasked, comes when the first step is
done. Stops when its input ends.
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
from bench.training.split import Split
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
"""What ours is run with on each device, as options of the configuration's `engine`."""

Train = Callable[[], object]


def training(case: TrainingCase, implementation: str, device: str) -> tuple[Iterator[Any], Callable[[Any], None]]:
    """Batches and the step that trains on one."""
    torch.manual_seed(0)
    if implementation == "eager":
        from bench.eager import training as eager

        return eager.training(case, device)
    from bench.training import ours

    return ours.training(case, EngineConfig(device=device, **OURS[device][implementation]))


def step_by_step(train: Train, count: int, split: Split | None) -> dict[str, list[Any]]:
    """The time of each step, and of its parts where there are clocks."""
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
    """The mean time of a step, as it is on a GPU that is waited for once, when all are queued."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        train()
    synchronize(device)
    return {"seconds": [(time.perf_counter() - start) / count], "split": []}


def peak_resident() -> int:
    """Bytes of this process; not what getrusage says, which begins with the peak of the process that started this."""
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
    if device == "cpu" and implementation != "ours, compile":  # whose compiler would stumble over the clocks
        split = Split()
        split.watch_networks()
    batches, step = training(TrainingCase(method, teacher, student, int(batch_size)), implementation, device)
    next_batch = split.timed("data", lambda: next(batches)) if split else lambda: next(batches)

    def train() -> None:
        step(next_batch())

    answer(device, first_step=all_at_once(train, 1, device)["seconds"][0])
    for line in sys.stdin:
        uncounted, counted = map(int, line.split())
        for _ in range(uncounted):
            train()
        on_gpu = device == "cuda"
        answer(device, **(all_at_once(train, counted, device) if on_gpu else step_by_step(train, counted, split)))


if __name__ == "__main__":
    main()
