"""Run our implementation of each case twice, for a profiler: `python -m bench.once [FAMILY ...] [--cases NAME ...]`."""

from __future__ import annotations

import argparse

from bench.cases import FAMILIES, of_family
from bench.measure import Effort, synchronize
from sftn_fast import ops

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.once")
    parser.add_argument("families", nargs="*", help="default: all")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--cases", nargs="+", default=(), metavar="NAME", help="beginnings of the cases' names")
    args = parser.parse_args()
    effort = Effort(turns=1, seconds=0, compile=False, cases=tuple(args.cases))
    with ops.backend("fused"):
        for family in args.families or FAMILIES:
            for case in filter(lambda case: effort.wants(case.name), of_family(family)):
                step = case.steps(args.device)["ours"]
                step()
                step()
                synchronize(args.device)
                print(family, case.name, flush=True)
