"""The end of a process whose GPU can't be used any more.

A kernel's assertion, or an access out of bounds, breaks the context of its process: every later call fails, whatever it
calls. The tests that follow would fail for nothing.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

EXIT_CODE = 70


def is_broken() -> bool:
    """Return whether the GPU of this process answers with an error. False if the process uses none."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def end_process(config: Any) -> None:
    """End a worker of pytest-xdist, which gets a successor for the tests that are left. Stop any other process."""
    if hasattr(config, "workerinput"):
        os._exit(EXIT_CODE)  # a regular end would wait for the GPU
    else:
        pytest.exit(
            "this test broke the GPU's context: no later test can pass in this process; -n 2 replaces the process"
        )
