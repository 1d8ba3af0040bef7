"""Environment of a training: versions, device and threads, recorded in its result."""

from __future__ import annotations

import platform
import re
from datetime import datetime
from pathlib import Path

import torch

import sftn_fast
from sftn_fast.ops import _library


def processor() -> str:
    """Return the name of the CPU, or of its architecture if the system does not know the name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def environment(device: torch.device) -> dict[str, str]:
    """Return the :func:`surroundings` of a training on ``device`` that ends now, with the time."""
    return {**surroundings(device), "finished": datetime.now().astimezone().isoformat(timespec="seconds")}


def surroundings(device: torch.device) -> dict[str, str]:
    """Return versions, device and threads of a training on ``device``."""
    on_gpu = device.type == "cuda"
    return {
        "sftn_fast": sftn_fast.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if on_gpu else processor(),
        "threads": str(torch.get_num_threads()),
        "kernels": "fused" if (_library.CUDA if on_gpu else _library.CPU).loaded else "plain PyTorch",
    }
