"""The names of the backends that this machine can run losses on."""

from __future__ import annotations

import torch

BACKENDS = ("reference", "cpu", "emulated", *(["cuda"] if torch.cuda.is_available() else []))

IN_PYTHON = "cpu, autograd in Python"
"""The CPU's kernels without the autograd nodes in C++, which a wheel lacks. For tests of what nodes do."""
