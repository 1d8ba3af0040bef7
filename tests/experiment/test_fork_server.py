"""Workers forked from a process that has imported everything are processes like any other."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from sftn_fast.config import Config, EngineConfig
from sftn_fast.experiment import fork_server, pool
from sftn_fast.experiment.fork_server import ForkedProcess, ForkServer

ON_CPU = Config(devices=("cpu", "cpu"))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with fork_server.started(ON_CPU) as started:
        assert started is not None
        yield started


def forked(server: ForkServer, lock: int) -> tuple[ForkedProcess, Connection[Any, Any]]:
    """Return a worker and the parent's end of its pipe."""
    connection, theirs = Pipe()
    process = server.fork(theirs.fileno(), lock)
    theirs.close()
    assert process is not None
    return process, connection


def open_files(pid: int) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        found.add(str(descriptor.readlink()))
    return found


def test_a_worker_ends_with_its_parent_and_its_end_is_reported(server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        (first, to_first), (second, to_second) = forked(server, lock.fileno()), forked(server, lock.fileno())
        assert (first.poll(), second.poll()) == (None, None)
        assert os.getsid(first.pid) == first.pid, "Ctrl-C would reach it twice"
        assert str(tmp_path / "lock") in open_files(first.pid), "the folder would be free while it works"
        assert str(tmp_path / "lock") not in open_files(server._process.pid)
        pipes = {str(Path(f"/proc/self/fd/{each.fileno()}").readlink()) for each in (to_first, to_second)}
        assert not open_files(second.pid) & pipes, "it would not notice that its parent is gone"
        to_first.close()
        assert first.wait() == -signal.SIGTERM
        assert second.poll() is None
        second.send_signal(signal.SIGKILL)
        assert second.wait() == second.poll() == -signal.SIGKILL
        second.send_signal(signal.SIGKILL)  # another process may have its number
        to_second.close()


def test_a_worker_is_told_to_end(server: ForkServer, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        worker = pool._Worker(Config(engine=EngineConfig(device="cpu")), tmp_path, lock.fileno(), server)
        assert isinstance(worker.process, ForkedProcess) and not worker.ended
        worker.close()
        assert worker.ended and worker.process.wait() == 0


def test_without_its_server_a_worker_is_an_interpreter(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        server = ForkServer()
        server._process.kill()
        server._process.wait()
        worker = pool._Worker(Config(engine=EngineConfig(device="cpu")), tmp_path, lock.fileno(), server)
        server.close()
        assert isinstance(worker.process, subprocess.Popen)
        worker.close()
        assert worker.process.returncode == 0


def test_a_worker_whose_server_was_killed_still_runs_and_can_be_stopped(tmp_path: Path) -> None:
    with fork_server.started(ON_CPU) as server, (tmp_path / "lock").open("w") as lock:
        assert server is not None
        process, connection = forked(server, lock.fileno())
        server._process.kill()
        server._process.wait()
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGKILL  # its own exit code is lost
        connection.close()


def test_a_system_that_cannot_watch_processes_has_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    assert not fork_server.suits(ON_CPU)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_process_with_threads_is_not_forked(threads: int) -> None:
    module = "import threading\n" + "threading.Thread(target=threading.Event().wait, daemon=True).start()\n" * threads
    code = f"""
import socket, sys, types
from sftn_fast.experiment import fork_server
fork_server.import_module = lambda name: exec({module!r}) if name == "threaded" else __import__(name)
fork_server.PRELOADED = ("threaded",)
ours, theirs = socket.socketpair()
fork_server.serve(theirs) if sys.argv[1] == "0" else print(fork_server.serve(theirs))
"""
    if threads:
        run = subprocess.run([sys.executable, "-c", code, "1"], capture_output=True, text=True, timeout=60)
        assert run.stdout == "None\n", run.stderr
    else:
        with pytest.raises(subprocess.TimeoutExpired):  # it waits for messages
            subprocess.run([sys.executable, "-c", code, "0"], timeout=5)


@pytest.mark.parametrize("devices", [1, 2, "all", ("cpu",), ("cuda:0", "cuda:1"), ("cuda:0", "cpu")])
def test_other_devices_need_no_server(devices: Any) -> None:
    with fork_server.started(Config(devices=devices)) as server:
        assert server is None


def test_a_system_without_a_list_of_threads_has_no_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fork_server, "TASKS", tmp_path / "nowhere")
    assert not fork_server.suits(ON_CPU)


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, sftn_fast.experiment.fork_server; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
