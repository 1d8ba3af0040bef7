"""A process that imports what a training needs, once, and forks the workers of a pool on the CPU.

As a process it is ``python -m sftn_fast.experiment.fork_server FD``, where FD is its end of a socket. Each message
comes with three file descriptors: the worker's end of its pipe, the lock of the run's folder, and a pipe for the report
on the worker: its process id, then its exit code. The server ends when the other end of the socket closes.

A fork has one thread, and a lock that another thread held stays locked in it. So the server computes nothing: no
thread of OpenMP or autograd exists yet. The only threads are those that numpy's OpenBLAS starts while it is imported,
ends before a fork and starts again at its next use. If there are others, the server ends, and the pool starts
interpreters instead.

multiprocessing's own server would import the program's ``__main__``, which may be anybody's script, in each worker.

Nothing here imports torch before the server runs, so that a program can start one before it imports torch itself.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TextIO

from sftn_fast.config import Config

PRELOADED = ("sftn_fast.experiment.worker", "sftn_fast.data.sources", "sftn_fast.distillers.methods")
TASKS = Path("/proc/self/task")
"""Folder with an entry for each thread of a process. Without it no thread can be ruled out."""


def suits(config: Config) -> bool:
    """Return whether several workers on the CPU run the jobs of ``config``, on a system where they can be forked."""
    devices = config.devices if isinstance(config.devices, tuple) else ()
    return devices.count("cpu") > 1 and TASKS.is_dir() and _can_watch()


def _can_watch() -> bool:
    """Return whether this system tells a program when a process ends that is not its child."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or a version before 5.3
        return False
    return True


@contextmanager
def started(config: Config) -> Iterator[ForkServer | None]:
    """Return a context with a server for the workers of ``config``, or with None if it has no use for one."""
    server = ForkServer() if suits(config) else None
    try:
        yield server
    finally:
        if server is not None:
            server.close()


def interpreter(module: str, connection: int, *inherited: int) -> subprocess.Popen[bytes]:
    """Start ``module`` as a program of this environment that is told the file descriptor of its connection.

    It inherits that one and ``inherited``, and has a session of its own: Ctrl-C reaches its parent alone.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, str(connection)],
        pass_fds=(connection, *inherited),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        start_new_session=True,
    )


class ForkServer:
    """The server as its parent sees it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = interpreter("sftn_fast.experiment.fork_server", theirs.fileno())
        theirs.close()

    def fork(self, connection: int, lock: int) -> ForkedProcess | None:
        """Return a worker with these file descriptors as soon as it runs; None if the server can't fork."""
        ours, theirs = os.pipe()
        try:
            socket.send_fds(self._socket, [b"fork"], [connection, lock, theirs])
        except OSError:  # it has ended
            os.close(ours)
            return None
        finally:
            os.close(theirs)
        report = os.fdopen(ours)
        pid = report.readline()
        if not pid:
            report.close()
            return None
        return ForkedProcess(int(pid), report)

    def close(self) -> None:
        """End the server. Its workers have ended, or are on their own."""
        self._socket.close()
        self._process.kill()  # it may still import
        self._process.wait()


class ForkedProcess:
    """A worker that a server has forked, with the methods of ``subprocess.Popen`` that a pool uses.

    It may outlive its server, of which it is the child: it is watched by a descriptor of the process itself.
    """

    def __init__(self, pid: int, report: TextIO) -> None:
        self.pid, self._report = pid, report
        self.returncode: int | None = None
        try:
            self._process: int | None = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, and the server has noticed
            self._process = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None and (self._process is None or select.select([self._process], [], [], 0)[0]):
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for the end and return the exit code: that of a kill if the server, which would know, is gone."""
        if self.returncode is None:
            if self._process is not None:
                select.select([self._process], [], [])
                os.close(self._process)
            self.returncode = int(self._report.readline() or -signal.SIGKILL)
            self._report.close()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None and self._process is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, signum)


def serve(connection: socket.socket) -> int | None:
    """Fork a worker for each message. Return its end of its pipe in a worker, and None in the server at its end."""
    import_module("numpy")
    before = _threads()
    for name in PRELOADED:
        import_module(name)
    if _threads() > before:
        return None
    reports: dict[int, int] = {}
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([connection, ours], [], [])[0]
        if ours in ready:
            ours.recv(4096)
            _report_ended(reports)
        if connection in ready:
            message, descriptors, _, _ = socket.recv_fds(connection, 16, 3)
            if not message:
                signal.set_wakeup_fd(-1)  # a worker may end after its sockets are closed
                return None
            worker, lock, report = descriptors
            if pid := os.fork():
                os.close(worker)
                os.close(lock)
                os.write(report, f"{pid}\n".encode())
                reports[pid] = report
            else:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.setsid()
                for descriptor in (report, *reports.values()):
                    os.close(descriptor)
                for each in (connection, ours, theirs):
                    each.close()
                return worker


def _threads() -> int:
    return len([*TASKS.iterdir()])


def _report_ended(reports: dict[int, int]) -> None:
    """Write the exit codes of workers that have ended."""
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        with suppress(OSError):  # nobody waits for it any more
            os.write(report, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os.close(report)


def main(argv: list[str]) -> None:
    """Serve the parent at the other end of the file descriptor named on the command line."""
    worker = serve(socket.socket(fileno=int(argv[0])))
    if worker is not None:
        import_module("sftn_fast.experiment.worker").run(worker)


if __name__ == "__main__":
    main(sys.argv[1:])
