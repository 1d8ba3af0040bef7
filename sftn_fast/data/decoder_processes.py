"""Worker processes that decode images: how they start, and how they end with the process that they work for."""

from __future__ import annotations

import multiprocessing
import os
import select
import shutil
import sys
import threading
import time
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import Protocol

POLL_SECONDS = 0.5


class Parent(Protocol):
    """The part of ``multiprocessing.parent_process()`` that is used here."""

    @property
    def pid(self) -> int | None:
        """Process id."""

    def join(self) -> None:
        """Wait until the process ends, or closes its pipe to this one."""


def start_context(preload: list[str]) -> BaseContext:
    """Return the multiprocessing context that starts workers.

    They are forked from a server process without threads, so that they inherit no locked lock. Where there is no such
    server, as on Windows, every worker is started from scratch.

    Args:
        preload: Modules that the server imports once for all workers.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    return context


def scratch_folder() -> str:
    """Return the temporary folder through which this process talks to its workers; a killed process leaves it there."""
    return util.get_temp_dir()


def exit_with_parent(scratch: str) -> None:
    """Exit this process as soon as its parent is gone, and remove ``scratch``, the parent's temporary folder.

    Call this in a worker. The operating system can't do it: to it, the worker's parent is the fork server.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_exit_after, args=(parent, scratch), daemon=True).start()


def _exit_after(parent: Parent, scratch: str) -> None:
    wait_until_gone(parent)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def wait_until_gone(parent: Parent) -> None:
    """Return when the process ``parent`` no longer exists.

    ``parent.join()`` alone is too early on POSIX: it returns when the parent closes a pipe, which the parent does while
    it is still exiting. The parent then removes its temporary folder itself, and must find it intact.
    """
    assert parent.pid is not None
    if not hasattr(os, "pidfd_open"):
        _poll_until_gone(parent, parent.pid)
        return
    try:
        handle = os.pidfd_open(parent.pid)
    except ProcessLookupError:
        return
    except OSError:  # an old kernel, or a sandbox
        _poll_until_gone(parent, parent.pid)
        return
    select.select([handle], [], [])


def _poll_until_gone(parent: Parent, pid: int) -> None:
    parent.join()
    if sys.platform == "win32":  # join() waits for the process itself there, and os.kill() would end it
        return
    while _exists(pid):
        time.sleep(POLL_SECONDS)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:  # also where another user's process has the number now
        return False
    return True
