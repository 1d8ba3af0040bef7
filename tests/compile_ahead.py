"""Compilers that run beside the tests, at the lowest priority, until the tests that need their results.

Tests wait for processes, disks and signals; meanwhile a core is free. A test that needs a result waits for the same
lock, and compiles what is still missing. So a failure here is silent: the test reports it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

REGISTERS = "registers"
EMULATED = "sftn_emulated"
FIXTURES = {"backend", "emulated_ops", "emulator"}
"""Of tests that need the emulated kernels."""


def targets_of(items: Sequence[pytest.Item]) -> list[str]:
    """Return what to compile for tests, in order: nothing, unless a test is marked ``compiles``."""
    marked = [target for item in items for mark in item.iter_markers("compiles") for target in mark.args]
    kernels = any(FIXTURES.intersection(getattr(item, "fixturenames", ())) for item in items)
    if marked and kernels and "SFTN_EMULATED_DIR" not in os.environ:
        marked.insert(0, EMULATED)  # most tests wait for it
    return list(dict.fromkeys(marked))


def start(targets: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start to compile. The process ends with this one, whose end of its standard input it watches."""
    return subprocess.Popen(
        [sys.executable, __file__, *targets],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and its compilers."""
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


def end_with_the_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.killpg(0, signal.SIGKILL)


def main(targets: Sequence[str]) -> None:
    """Compile each target, whatever becomes of the others."""
    # Not at the top: the processes that run tests import this module, and a copy of the tests may lack the emulator.
    import registers
    from simt.build import build_target

    for target in targets:
        with suppress(RuntimeError, OSError):
            registers.compile_all() if target == REGISTERS else build_target(target)


if __name__ == "__main__":
    os.setpgrp()  # and not a session, which may get a share of its own of the processor, whatever its priority
    os.nice(19)
    threading.Thread(target=end_with_the_parent, daemon=True).start()
    main(sys.argv[1:])
