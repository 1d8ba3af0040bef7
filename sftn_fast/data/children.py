"""Processes that decode for another one, and end when that one does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import threading
from multiprocessing import util


def scratch_folder() -> str:
    """The temporary folder by which this process reaches its children; left behind only where it is killed."""
    return util.get_temp_dir()


def leave_with_parent(scratch: str) -> None:
    """End this process as soon as the one that asked for it is gone, and remove ``scratch``, its folder.

    To be called by a process of the forkserver: the server is its parent for the system, so that the system can't tell
    it of the death of the other.
    """
    threading.Thread(target=_leave, args=(scratch,), daemon=True).start()


def _leave(scratch: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(1)
