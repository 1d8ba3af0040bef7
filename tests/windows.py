"""Make this Python on Linux behave like one on Windows, as far as the package can notice: ``import windows`` first.

Functions and modules that only Unix has are gone, processes start by spawn alone, a folder can't be opened, and a file
can be neither replaced nor removed while this process has it open. The libraries that the package uses are imported
before, because they look at the system while they are imported.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

USED = "asyncio concurrent.futures.process ctypes.util getpass ssl subprocess tarfile tempfile uuid webbrowser zipfile "
USED += "torch torch.distributed torchvision PIL.Image PIL.ImageFile matplotlib.pyplot "
USED += "scipy.stats sklearn.datasets safetensors.torch jinja2 tqdm yaml"
FUNCTIONS = (
    "fork forkpty getpgid getpgrp getuid killpg link mkfifo openpty pidfd_open posix_fallocate sched_getaffinity "
)
FUNCTIONS += "setsid statvfs sysconf uname wait4 waitid O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK WNOHANG"
SIGNALS = "SIGALRM SIGCHLD SIGHUP SIGKILL SIGQUIT SIGUSR1 SIGUSR2 pthread_sigmask sigwait"
MODULES = "fcntl grp posix pty pwd resource syslog termios tty"


def is_open(path: str) -> bool:
    """Whether this process has the file open, or mapped, or a file in the folder."""
    found = [os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()]
    maps = Path("/proc/self/maps").read_text("utf-8").splitlines()
    found += [line.split(maxsplit=5)[5] for line in maps if "/" in line]
    wanted = os.path.realpath(path)
    return any(name == wanted or name.startswith(f"{wanted}/") for name in found)


def refuse_open_files(function: Callable[..., Any], *paths: Any, **options: Any) -> Any:
    for path in paths:
        if is_open(os.fspath(path)):
            raise PermissionError(13, "the file is in use by this process", os.fspath(path))
    return function(*paths, **options)


def open_no_folder(function: Callable[..., int], path: Any, flags: int, *rest: Any, **options: Any) -> int:
    if Path(path).is_dir():
        raise PermissionError(13, "a folder can't be opened", os.fspath(path))
    return function(path, flags, *rest, **options)


for _name in USED.split():
    importlib.import_module(_name)
for _module, _names in ((os, FUNCTIONS), (signal, SIGNALS)):
    for _name in _names.split():
        _module.__dict__.pop(_name, None)
for _name in MODULES.split():
    sys.modules[_name] = None  # type: ignore[assignment]
for _name in ("replace", "rename", "unlink", "remove", "rmdir"):
    setattr(os, _name, partial(refuse_open_files, getattr(os, _name)))
os.open = partial(open_no_folder, os.open)
shutil._use_fd_functions = False  # type: ignore[attr-defined]
multiprocessing.get_all_start_methods = lambda: ["spawn"]  # type: ignore[method-assign]
sys.platform = "win32"
