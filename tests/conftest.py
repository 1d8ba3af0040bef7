"""The backends that the losses run on, as a fixture: every test that takes `backend` runs on each of them."""

from __future__ import annotations

import copy
import gc
import importlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NoReturn

# Processes side by side share the cores. More threads than cores wait for each other in spin loops: some tests took
# ten times as long.
PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if PROCESSES > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // PROCESSES)))

import compile_ahead  # noqa: E402
import gpu_context  # noqa: E402
import pytest  # noqa: E402
import sketched  # noqa: E402
import torch  # noqa: E402
import unsynced  # noqa: E402, F401
from backends import BACKENDS, IN_PYTHON  # noqa: E402
from order import ordered  # noqa: E402

from sftn_fast import ops  # noqa: E402
from sftn_fast.ops import _backend, _library, _nodes  # noqa: E402
from sftn_fast.utils import safe_yaml  # noqa: E402


@dataclass(frozen=True)
class Backend:
    name: str
    device: str

    @property
    def fused(self) -> bool:
        return self.name != "reference"


def missing(what: str) -> NoReturn:
    """Skip for want of compiled code; where it is known to be there, as under `make test`, fail."""
    if os.environ.get("SFTN_REQUIRE_KERNELS"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def emulated_ops() -> Any:
    """The CUDA sources, compiled by g++ against the emulator: `torch.ops.sftn_fast_emulated`, on CPU tensors."""
    try:
        importlib.import_module("simt.build").load()
    except (ImportError, OSError, RuntimeError) as error:
        missing(f"the emulated kernels were not built: {error}")
    return torch.ops.sftn_fast_emulated


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name = request.param
    if name in ("cpu", IN_PYTHON) and not _library.CPU.loaded:
        missing(f"no CPU kernels: {_library.CPU.error}")
    if name == "cuda" and not _library.CUDA.loaded:
        pytest.skip(f"no CUDA kernels: {_library.CUDA.error}")
    if name == "emulated":
        emulated = request.getfixturevalue("emulated_ops")
        with ops.backend("fused"), _backend._use_namespace("cpu", emulated):
            yield Backend(name, "cpu")
        return
    if name == IN_PYTHON:
        with ops.backend("fused"), _nodes.in_python():
            yield Backend(name, "cpu")
        return
    with ops.backend("reference" if name == "reference" else "fused"):
        yield Backend(name, "cuda" if name == "cuda" else "cpu")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[Any]:
    """Leave the tests and what they import out of every later garbage collection: that took a tenth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first and those that wait for compilers last, where processes share the tests."""
    if PROCESSES > 1:
        items[:] = ordered(
            items,
            PROCESSES,
            module=lambda item: item.nodeid.partition("::")[0],
            long=lambda item: item.get_closest_marker("slow") is not None,
            late=lambda item: item.get_closest_marker("compiles") is not None,
        )


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the compilers that selected tests wait for, from one of the processes that run tests."""
    workers = getattr(session.config.option, "numprocesses", None)
    if session.config.option.collectonly or (workers and "PYTEST_XDIST_WORKER" not in os.environ):
        return
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0" and (targets := compile_ahead.targets_of(session.items)):
        session.config.add_cleanup(partial(compile_ahead.stop, compile_ahead.start(targets)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the process behind a test that broke the GPU for it, so that the next test fails or passes by itself."""
    result = yield
    if gpu_context.is_broken():
        gpu_context.end_process(item.config)
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many tests were skipped for what, in one line a reason."""
    if "cuda" not in BACKENDS:
        terminalreporter.write_line("no GPU: losses ran on the CPU, and their CUDA kernels on the emulator")
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reports have real pictures."""
    for module in sketched.WITH_PICTURES:
        monkeypatch.setattr(module, "save", sketched.render)


parse = cache(safe_yaml.load)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse each text once in the process. A run parses its configuration five times, half of a tiny run's time."""
    monkeypatch.setattr(safe_yaml, "load", lambda *text, **options: copy.deepcopy(parse(*text, **options)))


@pytest.fixture
def forgotten_plugins():
    """What plugins register is gone after the test; our own methods stay, which are imported once, when asked for."""
    from sftn_fast import models
    from sftn_fast.distillers import registry

    networks = set(models.names())
    yield
    for name in set(models.names()) - networks:
        del models.registry._factories[name]
    for name, method in list(registry._methods.items()):
        if not method.__module__.startswith("sftn_fast."):
            del registry._methods[name]
