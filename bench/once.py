"""Run our implementation of each case twice, for a profiler: `python -m bench.once [FAMILY ...]`."""

from __future__ import annotations

import argparse

from bench.cases import FAMILIES, of_family
from bench.measure import synchronize
from sftn_fast import ops

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.once")
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    args = parser.parse_args()
    with ops.backend("fused"):
        for family in args.families or FAMILIES:
            for case in of_family(family):
                step = case.steps(args.device)["ours"]
                step()
                step()
                synchronize(args.device)
                print(family, case.name, flush=True)
