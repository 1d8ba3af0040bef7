"""The parts of the two runs of a session, the most important first. Parts of a stage run side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.gpu.libraries import CARRIED, architecture
from bench.gpu.part import Part, last_line
from bench.ncu import ARGUMENTS as NCU
from bench.ncu import summary as ncu_summary

Stage = tuple[Part, ...]

FAMILIES = ("logits", "contrastive", "relational", "features", "negatives", "logits_divergence")
"""Families in the order in which they are measured: what is last may have no time left."""
WORKERS = min(8, os.cpu_count() or 1)
SHOWN = ("KD + CE (64, 100)", "SFTN, 3 branches (64, 100)", "CRD, N 50,000", "RKD (64, 128)", "OH (64, 64, 32, 32)")
"""Cases that torch.compile is measured in, because it needs 10 to 20 seconds for each."""
PROFILED = (
    *("KD + CE (64, 100)", "KD + CE (1024, 1000)", "SFTN, 3 branches (256, 1000)", "CRD and its negatives, N 50,000"),
    *("RKD (256, 128)", "SP (256, 512, 7, 7)", "PKT (256, 512)", "hint (64, 256, 8, 8)", "OH (64, 64, 32, 32)"),
    *(
        "DKD (256, 1000)",
        "AT (64, 64, 32, 32)",
        "BatchNorm + ReLU + MSE (64, 64, 32, 32)",
        "negatives, 64 x 16384 of 1,281,167",
    ),
)
"""Cases whose kernels Nsight Compute looks at."""
FIRST_PAIR = "wrn_40_2 -> wrn_16_2"
DIGITS = ("crd=0.8", "rkd=1", "at=1000")
"""Methods that train on handwritten digits side by side, beside the demo's."""


@dataclass(frozen=True)
class Plan:
    """A run of a session: its stages, and the time for all of them."""

    minutes: float
    stages: Callable[[str, Path], list[Stage]]


def first(device: str, folder: Path) -> list[Stage]:
    """Return the stages of the first run: is it right, and how fast is it?"""
    bench, on_gpu = _bench(device, folder), device == "cuda"
    both = ["--no-compile", "--implementations", "ours"]
    kernels = [*FAMILIES, "--seconds", "1.5", *both, "--graphs"] if on_gpu else _few("--cases", *SHOWN)
    steps = ["training", "--cases", f"KD: {FIRST_PAIR}"]
    if on_gpu:
        steps += [f"CRD: {FIRST_PAIR}", "--seconds", "6", "--implementations", "eager, NHWC", "ours", "ours, float32"]
    else:
        steps += ["--seconds", "0", *both]
    return [
        (_load(device, folder),),
        (Part("table", [*_table(device), "--apart", "--patience", str(30 * _slower(device))], 40 * _slower(device)),),
        (_tests(device), *map(_sanitizer, ("memcheck", "racecheck"))),
        (Part("bench", [*bench, *kernels], 130 * _slower(device)),),
        (Part("training", [*bench, *steps], 100 * _slower(device), needs=("module:torchvision",)),),
        (_ncu(device, folder),),
    ]


def second(device: str, folder: Path) -> list[Stage]:
    """Return the stages of the second run: other sizes, peers, and the plain loop."""
    bench, on_gpu = _bench(device, folder), device == "cuda"
    both = ["--no-compile", "--implementations", "ours"]
    graphs = ["--graphs"] if on_gpu else []
    large = ["logits", "features", "--large", "--seconds", "1", *both, *graphs]
    peers = ["logits", "contrastive", "relational", "features", "--label", "peers", "--cases", *SHOWN, "--seconds", "1"]
    steps = ["training", "--label", "more", "--cases", f"KD: {FIRST_PAIR}", f"RKD: {FIRST_PAIR}", "--seconds", "3"]
    steps += ["--implementations", "ours", "ours, no graphs"]
    if not on_gpu:  # a CPU has neither the memory nor the time
        large = _few("--large", "--cases", "KD + CE (64, 100) bfloat16", families=("logits",))
        peers = _few("--label", "peers", "--cases", SHOWN[0], families=("logits",))
        steps = ["training", "--label", "more", "--cases", "none of them", "--seconds", "0"]
    return [
        (_load(device, folder),),
        (Part("large", [*bench, *large], 40 * _slower(device)),),
        (Part("peers", [*bench, *peers, *graphs], 80 * _slower(device)),),
        (Part("steps", [*bench, *steps], 70 * _slower(device), needs=("module:torchvision",)),),
        (Part("loop", [*bench, *FAMILIES, "--seconds", "0.3", *both], 40, gpu_only=True),),
        tuple(_train(device, folder, method) for method in ("", *DIGITS)),
        (Part("dali", _dali(folder), 30, needs=("module:nvidia.dali",), gpu_only=True),),
    ]


PLANS = {"first": Plan(9.5, first), "second": Plan(4.5, second)}


def _slower(device: str) -> int:
    """Return by how much to stretch the limits of a machine with 16 cores and a GPU."""
    return 1 if device == "cuda" else 4


def _bench(device: str, folder: Path) -> list[str]:
    return [sys.executable, "-m", "bench", "--device", device, "--folder", str(folder / "records")]


def _few(*options: str, families: tuple[str, ...] = FAMILIES) -> list[str]:
    """Return options of a benchmark that a CPU ends soon, to try the program."""
    return [*families, "--turns", "3", "--seconds", "0", "--no-compile", "--implementations", "ours", *options]


def _load(device: str, folder: Path) -> Part:
    check = [sys.executable, "-m", "bench.gpu.libraries", "--about", str(folder / "about.json"), "--device", device]
    gpu = architecture() if device == "cuda" else None
    only = {"SFTN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": gpu} if gpu else {"SFTN_CUDA": "0"}
    lines = {"NVCC_APPEND_FLAGS": "-lineinfo"}  # sanitizers and profilers then name the lines
    build = Part(
        "build",
        [*check, "--build"],
        130 * _slower(device),
        {**only, **lines},
        needs=("module:setuptools",),
    )
    load = [*check, "--carried", str(CARRIED), *(["--gpu", gpu] if gpu else [])]
    return Part("load", load, 20 * _slower(device), fallback=build, essential=True)


def _table(device: str) -> list[str]:
    return [sys.executable, "tests/ops/on_cuda.py", "--device", device]


def _tests(device: str) -> Part:
    # A worker whose GPU context is broken ends (tests/conftest.py), and another one takes its place.
    options = ["-q", "-n", str(WORKERS), "--max-worker-restart", "100", "-o", "addopts=-ra", "-p", "no:cacheprovider"]
    files = ["tests/engine/test_graph.py", *(["tests/ops"] if device == "cuda" else [])]
    command = [sys.executable, "-m", "pytest", *files, *options, "--continue-on-collection-errors", "-k", device]
    return Part("tests", command, 90 * _slower(device), needs=("module:pytest", "module:xdist"))


def _sanitizer(tool: str) -> Part:
    options = ["--tool", tool, "--error-exitcode", "9", "--print-limit", "20", "--kernel-regex", "kns=sftn"]
    return Part(
        tool,
        ["compute-sanitizer", *options, *_table("cuda"), "--dtypes", "float32", "--sizes", "33x130"],
        90,
        # Without caching, so that an overrun can't land unnoticed in another tensor of the same block.
        {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        needs=("compute-sanitizer",),
        gpu_only=True,
        detail=sanitizer_detail,
    )


def sanitizer_detail(log: str) -> str:
    """Return the tool's summary and whether any error was in one of our kernels, not in PyTorch's."""
    said = [line.strip("= \n") for line in log.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
    ours = any("sftn" in line for line in log.splitlines() if line.startswith("=========") and " at " in line)
    return f"{said[-1] if said else last_line(log)}; in our kernels: {'YES' if ours else 'none'}"


def _ncu(device: str, folder: Path) -> Part:
    profiled = [sys.executable, "-m", "bench.once", "--device", device, "--cases", *PROFILED]
    return Part(
        "ncu",
        ["ncu", *NCU, "--log-file", str(folder / "ncu.csv"), *profiled],
        60,
        needs=("ncu",),
        gpu_only=True,
        detail=lambda log: ncu_summary(folder / "ncu.csv", folder / "ncu.md") or last_line(log),
    )


def _train(device: str, folder: Path, method: str) -> Part:
    name = f"train-{method.partition('=')[0]}" if method else "train"
    command = [sys.executable, "-m", "sftn_fast.train", "--config", "demo", "--engine.device", device]
    command += ["--output", str(folder / name), *(["--distill", method] if method else [])]
    few = [] if device == "cuda" else ["--epochs", "2", "--seeds", "[0]"]
    return Part(name, [*command, *few], 40 * _slower(device), needs=("module:yaml", "module:sklearn"))


def _dali(folder: Path) -> list[str]:
    return [sys.executable, "-m", "bench.gpu.decode", str(folder / "records")]
