"""Records of measurements under bench/results: the raw rows as JSON, a page that shows them, and the conditions."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import sftn_fast
from bench import levels
from bench.measure import CONFIDENCE, MIN_TURNS, Effort, copy_bandwidth
from sftn_fast.ops import _capability
from sftn_fast.utils.atomic import write_atomically

RESULTS = Path(__file__).parent / "results"

Row = dict[str, Any]
"""A row of a table: what was measured, and the results."""


def processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return _of_processor("model name") or platform.processor() or platform.machine()


def _of_processor(field: str) -> str:
    """Return what Linux says of the first processor, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":")[1].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def model() -> dict[str, str]:
    """Return which processor it is of those with the same name, as far as Linux knows."""
    numbers = [_of_processor("cpu family"), _of_processor("model")]
    return {"family and model": " ".join(numbers)} if all(numbers) else {}


def conditions(device: str) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "processor": processor(device),
        **(model() if device == "cpu" else {}),
        "threads": torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "level": _capability.current(),
        "copy GB/s": round(copy_bandwidth(device) / 1e9, 1),
        **(graphics() if device == "cuda" else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sftn_fast": sftn_fast.__version__,
        "load": round(os.getloadavg()[0], 1),  # before the start: load by others, which makes results doubtful
    }


def mismatch() -> str | None:
    """Return the reason why kernels and PyTorch can't be compared on the CPU, or None: both must use one level."""
    wanted = os.environ.get(_capability.VARIABLE, "")
    ours, theirs = _capability.current(), torch.backends.cpu.get_cpu_capability().lower()
    if wanted and wanted != ours:
        return f"{_capability.VARIABLE} is {wanted!r}, but the kernels use {ours}"
    if ours != theirs and len(_capability.available()) > 1:  # there is a choice
        return (
            f"the kernels use {ours}, PyTorch {theirs}: set {_capability.VARIABLE} alone, which bench hands to PyTorch"
        )
    return None


def graphics() -> dict[str, Any]:
    """Return the versions and the state of a GPU that its speed depends on."""
    properties = torch.cuda.get_device_properties()
    return {
        "driver": driver(),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2 MiB": properties.L2_cache_size // 2**20,
        "memory GiB": round(properties.total_memory / 2**30, 1),
    }


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0] if said else "unknown"


def facts(about: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in about.items())


def limits(effort: Effort) -> dict[str, Any]:
    """Return the conditions under which a case's measurement ended."""
    return {"turns": effort.turns, "seconds": effort.seconds, "within": effort.within}


def ending(about: dict[str, Any], *, intervals: bool = True) -> str:
    """Return sentences on :func:`limits` for the page of a record that has them, and on the intervals it shows."""
    if "within" not in about:
        return ""
    rule = (
        f"A case ends after so many turns, after about so many seconds but not before {MIN_TURNS} turns, or when the "
        f"{CONFIDENCE:.0%} interval for the median of each ratio's turns reaches no further than `within` of its value "
        "to either side. "
    )
    shown = (
        "This interval, `by turns`, lies between two of the turns' ratios, exists from six turns on, and does not "
        "allow for having ended the measurement itself. "
    )
    return rule + shown * intervals


def interval(row: Row) -> str:
    """Return the cell of a row that says how well its ratio is known."""
    low, high = row.get("interval", (None, None))
    return "" if low is None else f"{low:.{1 if low >= 10 else 2}f} to {high:.{1 if low >= 10 else 2}f}"


def failed(row: Row) -> str:
    """Return the line of an implementation that could not be measured. Markdown leaves the other columns empty."""
    return f"| {row['case']} | {row['implementation']} | {row['error'].replace('|', '/')} |"


def save_rows(name: str, about: dict[str, Any], rows: list[Row], folder: Path = RESULTS) -> None:
    """Write the raw rows."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"conditions": about, "results": rows}, indent=1) + "\n"
    write_atomically(folder / f"{name}.json", text)  # others read it while it grows


def save(name: str, about: dict[str, Any], rows: list[Row], text: list[str], folder: Path = RESULTS) -> None:
    """Write the raw rows, and ``text`` as the page that shows them."""
    save_rows(name, about, rows, folder)
    (folder / f"{name}.md").write_text("\n".join(text) + "\n")


def read(name: str, folder: Path = RESULTS) -> tuple[dict[str, Any], list[Row]]:
    """Return the conditions and rows of a recorded measurement. FileNotFoundError if there is none."""
    recorded = json.loads((folder / f"{name}.json").read_text())
    return recorded["conditions"], recorded["results"]


def by_level(family: str, folder: Path = RESULTS) -> dict[str, tuple[dict[str, Any], list[Row]]]:
    """Return what is recorded of a family on the CPU, by level, in ascending order."""
    names = {level: named(family, "cpu", level) for level in levels.ALL}
    return {level: read(name, folder) for level, name in names.items() if (folder / f"{name}.json").exists()}


def named(suite: str, device: str, level: str | None, *ends: str) -> str:
    """Return the name of a record: SUITE-DEVICE, of kernels on a CPU -LEVEL, then further ends."""
    return "-".join(filter(None, (suite, device, level, *ends)))
