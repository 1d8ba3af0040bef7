"""A program that compares the table of :mod:`every_op` on a GPU with float64 on the CPU.

It needs nothing but torch and this repository, no pytest, so that compute-sanitizer can run it. An assertion that fails
on a GPU spoils its process for all that follows, so ``--apart`` gives each function a process of its own, some of them
side by side.

``python tests/ops/on_cuda.py [--device cpu] [--dtypes float32 ...] [--sizes 5x9 ...] [--ops rkd ...] [--apart]``
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from every_op import TABLE, Op, Outcome, assert_close, evaluate, widened

from sftn_fast import ops
from sftn_fast.ops import reference

DTYPES = ("float32", "bfloat16", "float16", "float64")
SIZES = ("5x9", "33x130", "1x1")  # rows and width: smaller than a warp, larger, the smallest
SIDE_BY_SIDE = 8
"""Processes at a time with ``--apart``, if there are so many processors."""
PATIENCE = 300.0
"""Seconds after which the process of a function is ended, with ``--apart``."""


def on_cpu(outcome: Outcome) -> Outcome:
    return Outcome(
        tuple(x.cpu() for x in outcome.results),
        {name: x.cpu() for name, x in outcome.grads.items()},
        [x.cpu() for x in outcome.states],
    )


def check(op: Op, dtype: torch.dtype, n: int, width: int, device: str) -> None:
    """Compare the kernels with float64. AssertionError where they differ."""
    with ops.backend("fused"):
        actual = evaluate(op, op.arguments(dtype=dtype, device=device, n=n, width=width))
    # Generators of different devices draw different numbers, so what draws is compared on one device.
    same = widened(op.arguments(dtype=dtype, device=device if op.draws else "cpu", n=n, width=width))
    with ops.backend("reference"):
        expected = evaluate(op, same, module=reference)
    # Of a single class or row most gradients are zeros, differences of numbers of about 1.
    assert_close(on_cpu(actual), on_cpu(expected), slack=1.0 if (n, width) == (1, 1) else 0.0)


def failures(names: list[str], dtypes: list[str], sizes: list[str], device: str) -> Iterator[str | None]:
    """Yield the error of each case, None if there is none."""
    for name in names:
        for dtype in dtypes:
            for n, width in (map(int, size.split("x")) for size in sizes):
                try:
                    check(TABLE[name], getattr(torch, dtype), n, width, device)
                except Exception as error:  # of any kind: the next case must still run
                    lines = str(error).strip().splitlines() or ["no message"]
                    yield f"{name} {dtype} ({n}, {width}): {type(error).__name__}: {' '.join(lines)[:300]}"
                else:
                    yield None


def output_of(command: list[str], patience: float) -> str:
    """Return what a process said, or a line about its end if it took longer than ``patience`` in seconds."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {patience:g} s"
    return done.stdout


def run_apart(names: list[str], dtypes: list[str], sizes: list[str], device: str, patience: float) -> int:
    """Run the ops of each function in a process of its own, print its outcome at once, and return the exit code."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(TABLE[name].function, []).append(name)
    common = [sys.executable, __file__, "--device", device, "--dtypes", *dtypes, "--sizes", *sizes, "--ops"]
    right = total = 0
    with ThreadPoolExecutor(min(SIDE_BY_SIDE, os.cpu_count() or 1)) as pool:
        started = {pool.submit(output_of, [*common, *own], patience): name for name, own in groups.items()}
        for future in as_completed(started):
            function = started[future]
            *wrong, last = future.result().strip().splitlines() or ["no output"]
            counted = re.fullmatch(r"(\d+) of (\d+) cases right.*", last)
            of_function = len(groups[function]) * len(dtypes) * len(sizes)
            if counted is None:  # the process died, or was ended
                wrong, of_right = [f"{function}: {last}"], 0
            else:
                of_right, of_function = int(counted[1]), int(counted[2])
            right, total = right + of_right, total + of_function
            print(*wrong, f"{function}: {of_right} of {of_function}", sep="\n", flush=True)
    print(f"{right} of {total} cases right on {device}")
    return int(right < total)


def main() -> int:
    parser = argparse.ArgumentParser(description="every loss on a device against float64 on the CPU")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES, help="rows and width")
    parser.add_argument("--ops", nargs="+", default=[*TABLE], choices=[*TABLE])
    parser.add_argument("--apart", action="store_true", help="a process for each function")
    parser.add_argument("--patience", type=float, default=PATIENCE, help=f"seconds for each ({PATIENCE:g})")
    args = parser.parse_args()
    if args.apart:
        return run_apart(args.ops, args.dtypes, args.sizes, args.device, args.patience)
    results = list(failures(args.ops, args.dtypes, args.sizes, args.device))
    wrong = [result for result in results if result]
    print(*wrong, f"{len(results) - len(wrong)} of {len(results)} cases right on {args.device}", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
