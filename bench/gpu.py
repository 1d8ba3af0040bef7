"""Run everything that needs a GPU: `python -m bench.gpu OUTPUT_FOLDER [--device cpu] [--parts PART ...]`.

Builds the kernels for the installed GPU and compares every loss with float64. Runs the tests on CUDA, the four tools of
compute-sanitizer, the benchmarks of kernels and of whole training steps, Nsight Compute and a real training. Each part
is a separate process with a time limit. A part that fails, hangs or lacks a tool affects only its own line in the table
at the end. All parts together end within --minutes; the table names parts that had no time, to pass to --parts the next
time. The raw output is in OUTPUT_FOLDER. `--device cpu` runs the parts that a CPU can run, as a test of this program.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.cases import FAMILIES
from bench.ncu import ARGUMENTS as NCU
from bench.ncu import summary as ncu_summary

ROOT = Path(__file__).resolve().parents[1]
WORTHWHILE = 2.0
"""Seconds below which no part is started."""
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")


@dataclass(frozen=True)
class Part:
    """A command with a time limit and a function that sums up its log in a line."""

    name: str
    command: list[str]
    limit: float  # seconds
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()  # programs, and Python modules as "module:NAME"
    gpu_only: bool = False
    detail: Callable[[str], str] = lambda log: last_line(log)


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # ok, FAILED, TIMED OUT, or not run
    seconds: float
    detail: str

    def __str__(self) -> str:
        return f"{self.name:22} {self.result:10} {self.seconds:7.1f} s  {self.detail}"


def last_line(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1].strip("= ")[:160] if lines else "no output"


def missing(part: Part, device: str) -> str | None:
    """Return the reason why a part can't run here, None if it can."""
    if part.gpu_only and device != "cuda":
        return "for a GPU"
    for need in part.needs:
        kind, _, name = need.rpartition(":")
        found = importlib.util.find_spec(name) if kind == "module" else shutil.which(name)
        if found is None:
            return f"{name} is not installed"
    return None


def run(part: Part, folder: Path, device: str, left: float = math.inf) -> Outcome:
    """Run a part for at most ``left`` seconds, with output in ``folder/<name>.log``, then kill its process group."""
    reason = missing(part, device) or ("no time left" if left < WORTHWHILE else None)
    if reason:
        return Outcome(part.name, "not run", 0.0, reason)
    limit = min(part.limit, left)
    path = folder / f"{part.name}.log"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "KINETO_LOG_LEVEL": "99", **part.environment}
    start = time.monotonic()
    with path.open("w") as log:
        log.write(f"$ {' '.join(part.command)}\n")
        log.flush()
        process = subprocess.Popen(
            part.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            result = "ok" if process.wait(limit) == 0 else "FAILED"
        except subprocess.TimeoutExpired:
            result = "TIMED OUT"
        finally:
            end(process)
    return Outcome(part.name, result, time.monotonic() - start, part.detail(path.read_text(errors="replace")))


def end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def sanitizer_detail(log: str) -> str:
    """Return the tool's summary and whether any error was in one of our kernels, not in PyTorch's."""
    said = [line.strip("= \n") for line in log.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    ours = any("sftn" in line for line in log.splitlines() if line.startswith("=========") and " at " in line)
    return f"{said[-1] if said else last_line(log)}; in our kernels: {'YES' if ours else 'none'}"


def parts(device: str, folder: Path) -> list[Part]:
    python = sys.executable
    on_gpu = device == "cuda"
    table = [python, "tests/ops/on_cuda.py", "--device", device]
    build_for = {"SFTN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture()} if on_gpu else {"SFTN_CUDA": "0"}
    # Without caching, so that an overrun can't land unnoticed in another tensor of the same block.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    short = [] if on_gpu else ["--turns", "3", "--seconds", "0.5", "--no-compile"]
    bench = [python, "-m", "bench", "--device", device, "--folder", str(folder)]
    few_turns = ["--seconds", "4"] if on_gpu else ["--seconds", "0", "--no-compile"]
    few = [] if on_gpu else ["--epochs", "2", "--seeds", "[0]"]
    # A test file that can't be imported because a package is missing fails alone.
    options = ["-q", "-o", "addopts=-ra", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-k", device]
    tests = [python, "-m", "pytest", "tests/ops", "tests/engine", *options]
    demo = [python, "-m", "sftn_fast.train", "--config", "demo"]
    sanitizers = [
        Part(
            tool,
            # initcheck gets no filter: it must see the writes of PyTorch's kernels.
            ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
            + ([] if tool == "initcheck" else ["--kernel-regex", "kns=sftn"])
            + [*table, "--dtypes", "float32", "bfloat16"],
            150,
            alone,
            needs=("compute-sanitizer",),
            gpu_only=True,
            detail=sanitizer_detail,
        )
        for tool in SANITIZERS
    ]
    return [
        Part("info", [python, "-m", "sftn_fast.info"], 60),
        Part("build", [python, "setup.py", "build_ext", "--inplace"], 300, build_for, needs=("module:setuptools",)),
        Part("table", [*table, "--apart"], 180),
        Part("tests", tests, 300, needs=("module:pytest",)),
        *sanitizers,
        Part("bench", [*bench, *FAMILIES, *short], 420),
        Part("training", [*bench, "training", *few_turns], 560 if on_gpu else 1200, needs=("module:torchvision",)),
        Part(
            "ncu",
            ["ncu", *NCU, "--log-file", str(folder / "ncu.csv"), python, "-m", "bench.once", "--device", device],
            180,
            needs=("ncu",),
            gpu_only=True,
            detail=lambda log: ncu_summary(folder / "ncu.csv", folder / "ncu.md") or last_line(log),
        ),
        Part(
            "train",
            [*demo, "--engine.device", device, "--output", str(folder / "demo"), *few],
            420,
            needs=("module:yaml", "module:sklearn"),
        ),
    ]


def architecture() -> str:
    """Return the compute capability of the installed GPU in the form of TORCH_CUDA_ARCH_LIST."""
    import torch

    return ".".join(map(str, torch.cuda.get_device_capability()))


def main() -> int:
    names = [part.name for part in parts("cpu", Path())]
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description="run everything that needs a GPU")
    parser.add_argument("folder", type=Path, help="folder for logs and results")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--minutes", type=float, default=9.5, help="time limit of all parts together (default: 9.5)")
    parser.add_argument("--parts", nargs="+", default=names, choices=names, metavar="PART", help=", ".join(names))
    args = parser.parse_args()
    if args.device == "cuda" and not has_gpu():
        parser.error("PyTorch finds no GPU; use --device cpu for the parts that a CPU can run")
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes, end_at = [], time.monotonic() + 60 * args.minutes
    for part in parts(args.device, folder):
        if part.name in args.parts:
            left = max(0.0, end_at - time.monotonic())
            print(f"== {part.name}, at most {min(part.limit, left):.0f} s", flush=True)
            outcomes.append(run(part, folder, args.device, left))
    (folder / "summary.json").write_text(json.dumps([vars(outcome) for outcome in outcomes], indent=1) + "\n")
    print("", *outcomes, sep="\n")
    return int(any(outcome.result in ("FAILED", "TIMED OUT") for outcome in outcomes))


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.exit(main())
