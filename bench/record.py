"""What a measurement leaves under bench/results: the raw rows as JSON, a table, and where it was."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import sftn_fast
from bench.family import Row
from bench.measure import TURN_MS, copy_bandwidth

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
        "copy GB/s": round(copy_bandwidth(device) / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sftn_fast": sftn_fast.__version__,
        "load": round(os.getloadavg()[0], 1),  # before the start: others' work, and a reason to doubt the figures
    }


def header(device: str) -> str:
    launches = "kernels launched" if device == "cuda" else "ops dispatched"
    names = ["case", "implementation", "p20 us", "p50 us", "p80 us", "n", "times eager (p50)", "peak KiB", launches]
    rule = ["---", "---", *["---:"] * 8]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([*names, "share of copy bandwidth"], rule))


def line(row: Row) -> str:
    if "error" in row:
        return f"| {row['case']} | {row['implementation']} | {row['error'].replace('|', '/')} {'| ' * 7}|"
    times = [f"{row[key]:.1f}" for key in ("p20", "p50", "p80")]
    share = "" if row["bandwidth_share"] is None else f"{row['bandwidth_share']:.2f}"
    counts = [row["n"], f"{row['ratio']:.1f}", f"{row['peak_bytes'] / 1024:,.0f}", row["launches"], share]
    return f"| {' | '.join(map(str, [row['case'], row['implementation'], *times, *counts]))} |"


def save(name: str, about: dict[str, Any], rows: list[Row], text: list[str], folder: Path = RESULTS) -> None:
    """The raw rows, and ``text`` as the page that shows them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"conditions": about, "results": rows}, indent=1) + "\n")
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")


def facts(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def write(name: str, family: str, device: str, about: dict[str, Any], rows: list[Row], folder: Path = RESULTS) -> None:
    how = (
        f"float32; {facts(about)}. Implementations take turns of {TURN_MS:g} ms; n counts samples. `eager` is the "
        "authors' code, `compile` the same under torch.compile, `reference` ours in plain PyTorch. Peak is the memory "
        "allocated during a call, results included. The share of the copy bandwidth is that of the bytes that must "
        "move; above 1, caches hold them."
    )
    text = [f"# {family}: forward and backward", "", how, "", f"![{family}]({name}.png)", "", header(device)]
    save(name, about, rows, [*text, *map(line, rows)], folder)


def read(name: str, folder: Path = RESULTS) -> tuple[dict[str, Any], list[Row]]:
    """The conditions and rows of a recorded measurement. FileNotFoundError if there is none."""
    recorded = json.loads((folder / f"{name}.json").read_text())
    return recorded["conditions"], recorded["results"]
