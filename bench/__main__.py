"""Measure the kernels and record the figures with the machine they come from: `python -m bench`.

Prints a table and writes bench/results/NAME.json and NAME.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts memory is not the subject

import torch

import sftn_fast
from bench.cases import FAMILIES, of_family
from bench.measure import TURN_MS, interleaved, peak_memory
from sftn_fast import ops

RESULTS = Path(__file__).parent / "results"


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def conditions(device: str) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sftn_fast": sftn_fast.__version__,
        "load": round(os.getloadavg()[0], 1),  # before the start: others' work, and a reason to doubt the figures
    }


def measure(family: str, device: str, turns: int) -> list[dict[str, Any]]:
    rows = []
    for case in of_family(family):
        steps = case.steps(device)
        timings = interleaved(steps, turns=turns, device=device)
        for name, timing in timings.items():
            rows.append(
                {
                    "case": case.name,
                    "implementation": name,
                    **{key: round(value, 2) for key, value in dataclasses.asdict(timing).items()},
                    "ratio": round(timings["eager"].p50 / timing.p50, 2),
                    "peak_bytes": peak_memory(steps[name], device),
                }
            )
            print(line(rows[-1]))
    return rows


HEADER = (
    "| case | implementation | p20 us | p50 us | p80 us | n | times eager (p50) | peak KiB |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|"
)


def line(row: dict[str, Any]) -> str:
    times = " | ".join(f"{row[key]:.1f}" for key in ("p20", "p50", "p80"))
    memory = f"{row['peak_bytes'] / 1024:,.0f}"
    return f"| {row['case']} | {row['implementation']} | {times} | {row['n']} | {row['ratio']:.1f} | {memory} |"


def write(name: str, family: str, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"conditions": about, "results": rows}, indent=1) + "\n")
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    how = f"float32; {facts}. Implementations take turns of {TURN_MS:g} ms; n counts calls."
    text = [f"# {family}: forward and backward", "", how, "", HEADER, *map(line, rows)]
    (RESULTS / f"{name}.md").write_text("\n".join(text) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("family", nargs="?", default="logits", choices=FAMILIES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--turns", type=int, default=50, help="turns of each implementation (default: 50)")
    parser.add_argument("--name", help="name of the files under bench/results (default: FAMILY-DEVICE)")
    args = parser.parse_args()
    about = conditions(args.device)
    print("\n".join(f"{key}: {value}" for key, value in about.items()), HEADER, sep="\n\n")
    with ops.backend("fused"):
        rows = measure(args.family, args.device, args.turns)
    write(args.name or f"{args.family}-{args.device}", args.family, about, rows)


if __name__ == "__main__":
    main()
