"""Description of this installation: ``python -m sftn_fast.info``.

Prints versions, the compiled libraries (with the exact reason if one is not loaded), devices and threads. Add it to
the report of a problem.
"""

from __future__ import annotations

import contextlib
import importlib
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch

import sftn_fast
from sftn_fast.cli.options import HELP
from sftn_fast.config import ConfigError
from sftn_fast.ops import _capability, _library, _nodes
from sftn_fast.utils import program

OPTIONAL = (("torchvision", "torchvision"), ("DALI", "nvidia.dali"), ("TensorBoard", "tensorboard"))
SLOW = (("wandb", ("wandb",)), ("MLflow", ("mlflow", "mlflow-skinny")), ("Trackio", ("trackio",)))
"""Packages that take seconds to import, with the names of their distributions."""


def version_of(module: str) -> str:
    """Return the version of an optional package, or the reason why it can't be used."""
    try:
        return str(importlib.import_module(module).__version__)
    except ModuleNotFoundError as error:
        return f"not installed ({error})"
    except Exception as error:  # a broken package may raise anything
        return f"broken ({type(error).__name__}: {error})"


def installed_version(distributions: Sequence[str]) -> str:
    """Return the version of the first distribution that is installed, without importing it."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "not installed"


def describe(library: _library.Library) -> str:
    """Return the path that a library was loaded from, or the reason why it was not loaded."""
    return f"loaded from {library.path}" if library.loaded else f"not loaded: {library.error}"


def instructions() -> str:
    """Return the level of vector instructions of the CPU kernels, and which others can be chosen or were not built."""
    levels = _capability.available()
    if not levels:
        return "none, without CPU kernels"
    others = f"; {_capability.VARIABLE} can be {', '.join(levels)}" if len(levels) > 1 else ""
    missing = [level for level in _capability.of_machine() if level not in levels]
    not_built = f"; not built: {', '.join(missing)} (SFTN_CPU_LEVELS=all)" if missing else ""
    return f"{_capability.current()}{others}{not_built}"


def devices() -> Iterator[tuple[str, str]]:
    """Yield name and description of each device."""
    yield "cpu", f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "cuda", "no GPU"
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        yield f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"


def lines() -> Iterator[tuple[str, str]]:
    """Yield all facts about the installation, as names and values."""
    yield "sftn_fast", sftn_fast.__version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    for name, module in OPTIONAL:
        yield name, version_of(module)
    for name, distributions in SLOW:
        yield name, installed_version(distributions)
    yield "CPU kernels", describe(_library.CPU)
    yield "instructions", instructions()
    yield "CUDA kernels", describe(_library.CUDA)
    yield "autograd", f"nodes in C++, {describe(_nodes.LIBRARY)}"
    yield from devices()


def main(argv: Sequence[str] | None = None) -> int:
    """Print all facts about the installation and return the exit code."""
    return program.run(_main, argv, output_matters=True)


def _main(argv: list[str]) -> int:
    if any(part in HELP for part in argv):
        print(__doc__)
        return 0
    if argv:
        raise ConfigError(f"sftn_fast.info takes no arguments, got {argv[0]!r}")
    for name, value in lines():
        print(f"{name:<13} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
