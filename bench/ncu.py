"""Arguments of Nsight Compute, and a short table of its results."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__bytes.sum": "DRAM bytes",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "% of DRAM peak",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "% of SM peak",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "% of warps",
    "launch__registers_per_thread": "registers",
}

ARGUMENTS = [
    *("--csv", "--print-units", "base", "--clock-control", "none", "--target-processes", "all"),
    *("--kernel-name-base", "mangled", "--kernel-name", "regex:sftn", "--metrics", ",".join(METRICS)),
]


def summary(source: Path, target: Path) -> str | None:
    """Write the medians of each kernel and grid as a table. Return a line about it, None if there are no kernels."""
    kernels = read(source.read_text(errors="replace")) if source.exists() else {}
    if not kernels:
        return None
    lines = [f"| kernel | launches | {' | '.join(METRICS.values())} |", "|---|" + "---:|" * (len(METRICS) + 1)]
    for (name, grid), values in kernels.items():
        medians = [f"{statistics.median(values[key]):,.0f}" if values[key] else "" for key in METRICS]
        launches = max(len(samples) for samples in values.values())
        lines.append(f"| {name} {grid} | {launches} | {' | '.join(medians)} |")
    target.write_text("\n".join(lines) + "\n")
    return f"{len(kernels)} kernels and grids, in {target.name}"


def read(text: str) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Return samples by (kernel, grid) and metric. Skip lines of the program and the tool before the table."""
    lines = text.splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    kernels: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in csv.DictReader(line for line in lines[begin:] if line.startswith('"')):
        name, metric = row.get("Metric Name"), row.get("Metric Value")
        if name in METRICS and metric:
            samples = kernels.setdefault((row["Kernel Name"], row["Grid Size"]), defaultdict(list))
            samples[name].append(float(metric.replace(",", "")))
    return kernels
