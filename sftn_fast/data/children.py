"""Processes that decode for another one, and end when that one does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import select
import shutil
import threading
from multiprocessing import util


def scratch_folder() -> str:
    """Return the temporary folder by which this process reaches its children; only a kill leaves it behind."""
    return util.get_temp_dir()


def leave_with_parent(scratch: str) -> None:
    """End this process as soon as the one that asked for it is gone, and remove ``scratch``, its folder.

    To be called by a process of the forkserver: the server is its parent for the system, so that the system can't tell
    it of the death of the other.
    """
    threading.Thread(target=_leave, args=(scratch,), daemon=True).start()


def _leave(scratch: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None and parent.pid is not None
    _wait_for_the_end_of(parent.pid)
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)


def _wait_for_the_end_of(pid: int) -> None:
    # Not `parent.join()`, whose pipe the parent closes while it is still at work on its way out, where it removes the
    # folder itself and must find it whole.
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([handle], [], [])
