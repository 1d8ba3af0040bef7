"""A program that compares the table of :mod:`every_op` on a GPU with float64 on the CPU.

It needs nothing but torch and this repository, no pytest, so that compute-sanitizer can run it.

``python tests/ops/on_cuda.py [--device cpu] [--dtypes float32 ...] [--ops rkd ...]``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from every_op import TABLE, Op, Outcome, assert_close, evaluate, widened

from sftn_fast import ops
from sftn_fast.ops import reference

DTYPES = ("float32", "bfloat16", "float16", "float64")
SIZES = ((5, 9), (33, 130), (1, 1))  # rows and width: smaller than a warp, larger, the smallest


def on_cpu(outcome: Outcome) -> Outcome:
    return Outcome(
        tuple(x.cpu() for x in outcome.results),
        {name: x.cpu() for name, x in outcome.grads.items()},
        [x.cpu() for x in outcome.states],
    )


def check(op: Op, dtype: torch.dtype, n: int, width: int, device: str) -> None:
    """Compare the kernels with float64. AssertionError where they differ."""
    actual = evaluate(op, op.arguments(dtype=dtype, device=device, n=n, width=width))
    same = widened(op.arguments(dtype=dtype, device="cpu", n=n, width=width))
    with ops.backend("reference"):
        expected = evaluate(op, same, module=reference)
    assert_close(on_cpu(actual), expected)


def failures(names: list[str], dtypes: list[str], device: str) -> Iterator[str | None]:
    """Yield the error of each case, None if there is none."""
    for name in names:
        for dtype in dtypes:
            for n, width in SIZES:
                try:
                    check(TABLE[name], getattr(torch, dtype), n, width, device)
                except Exception as error:  # of any kind: the next case must still run
                    lines = str(error).strip().splitlines() or ["no message"]
                    yield f"{name} {dtype} ({n}, {width}): {type(error).__name__}: {' '.join(lines)[:300]}"
                else:
                    yield None


def main() -> int:
    parser = argparse.ArgumentParser(description="every loss on a device against float64 on the CPU")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--ops", nargs="+", default=[*TABLE], choices=[*TABLE])
    args = parser.parse_args()
    with ops.backend("fused"):
        results = list(failures(args.ops, args.dtypes, args.device))
    wrong = [result for result in results if result]
    print(*wrong, f"{len(results) - len(wrong)} of {len(results)} cases right on {args.device}", sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
