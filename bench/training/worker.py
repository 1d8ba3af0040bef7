"""One implementation of one case, in a process of its own, which takes steps when it is told to.

`python -m bench.training.worker METHOD TEACHER STUDENT BATCH IMPLEMENTATION` answers each line with a number of steps
by a line of JSON; the first answer, unasked, comes when the first step is done. Stops when its input ends.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.training.cases import TrainingCase
from bench.training.split import Split
from sftn_fast import ops

IMPLEMENTATIONS = {
    "eager": None,
    "ours": {},
    "ours, compile": {"compile": True},
    "ours, bf16": {"amp": "bf16"},
    "ours, NCHW": {"channels_last": False},
}
"""The usual loop, and what ours is run with, as options of the configuration's `engine`."""


def training(case: TrainingCase, implementation: str) -> tuple[Iterator[Any], Callable[[Any], None]]:
    """Batches and the step that trains on one."""
    torch.manual_seed(0)
    options = IMPLEMENTATIONS[implementation]
    if options is None:
        from bench.eager import training as eager

        return eager.training(case)
    from bench.training import ours
    from sftn_fast.config import EngineConfig

    return ours.training(case, EngineConfig(device="cpu", **options))


def answer(**fields: Any) -> None:
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"peak_bytes": peak, **fields}), flush=True)


def main() -> None:
    method, teacher, student, batch_size, implementation = sys.argv[1:]
    ops.set_backend("fused")
    split = Split()
    if implementation != "ours, compile":  # whose compiler would stumble over the clocks
        split.watch_networks()
    batches, step = training(TrainingCase(method, teacher, student, int(batch_size)), implementation)
    next_batch = split.timed("data", lambda: next(batches))
    start = time.perf_counter()
    step(next_batch())
    answer(first_step=time.perf_counter() - start)
    for line in sys.stdin:
        seconds, parts = [], []
        split.take(0.0)
        for _ in range(int(line)):
            start = time.perf_counter()
            step(next_batch())
            seconds.append(time.perf_counter() - start)
            parts.append(split.take(seconds[-1]))
        answer(seconds=seconds, split=parts)


if __name__ == "__main__":
    main()
