"""Worker processes that decode: they ignore the signals that stop a run, and end with the process that they serve."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision.io")
import pictures

from sftn_fast.data import decoder_processes, verify

# A process with two workers that decode batches and two that check files. It prints their ids and waits to be killed.
BUSY = """
import multiprocessing, sys, torch
from multiprocessing import forkserver, util
from pathlib import Path
from sftn_fast.data import verify
from sftn_fast.data.file_loaders import FileEvalLoader, FileSplit, ImageFormat
from sftn_fast.data.torchvision_decoder import TorchvisionDecoder

def pids():
    return {child.pid for child in multiprocessing.active_children()}

def update(self, done):
    print(*(pids() - decoding), flush=True)
    print(forkserver._forkserver._forkserver_pid, flush=True)
    print(util.get_temp_dir(), flush=True)
    sys.stdin.read()

root = Path(sys.argv[1])
paths = [str(path) for path in root.iterdir()] * 6
image_format = ImageFormat(16, (0.5,) * 3, (0.2,) * 3, torch.device("cpu"))
files = FileSplit(paths, torch.zeros(len(paths), dtype=torch.int64))  # 576: a third batch keeps the workers busy
batches = iter(FileEvalLoader(files, TorchvisionDecoder(image_format, workers=2, root=root)))
next(batches)
decoding = pids()
print(*decoding, flush=True)
verify.ProgressBar.update = update
verify.main([sys.argv[1], "--workers", "2"])
"""


PATIENCE = 180  # seconds; a loaded machine takes long to unload torch from the server


def ends_before(deadline, process):
    return bool(select.select([process], [], [], max(0, deadline - time.monotonic()))[0])


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The fate of a process's workers: signals are sent to those that decode, then the process is killed."""
    root = tmp_path_factory.mktemp("images")
    for i in range(3 * verify.CHUNK):
        pictures.write(root / f"{i}.jpg")
    command = [sys.executable, "-c", BUSY, str(root)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def opened():
        return [os.pidfd_open(int(pid)) for pid in parent.stdout.readline().split()]

    decoders = opened()
    for worker in decoders:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.pidfd_send_signal(worker, number)
    ended_by_signals = select.select(decoders, [], [], 0.2)[0]
    checkers, server = opened(), opened()
    scratch = Path(parent.stdout.readline().strip())
    found = SimpleNamespace(signalled=len(decoders), ended_by_signals=ended_by_signals, scratch=scratch)
    found.scratch_was_there = scratch.is_dir()
    parent.kill()
    deadline = time.monotonic() + PATIENCE
    found.gone = {}
    for name, processes in {"decoders": decoders, "checkers": checkers, "server": server}.items():
        found.gone[name] = [ends_before(deadline, process) for process in processes]
        for process, is_gone in zip(processes, found.gone[name], strict=True):
            if not is_gone:
                signal.pidfd_send_signal(process, signal.SIGKILL)
            os.close(process)
    parent.communicate()
    return found


def test_workers_that_decode_survive_the_signals_that_stop_a_run(killed):
    assert killed.signalled == 2 and killed.ended_by_signals == []


@pytest.mark.parametrize(("name", "count"), [("decoders", 2), ("checkers", 2), ("server", 1)])
def test_every_process_ends_with_its_parent(name, count, killed):
    assert killed.gone[name] == [True] * count


def test_the_folder_of_a_killed_parent_is_removed(killed):
    assert killed.scratch_was_there and not killed.scratch.exists()


def answer(scratch: str, questions: Connection, has_pidfd: bool) -> None:
    if not has_pidfd:
        del os.pidfd_open
    decoder_processes.exit_with_parent(scratch)
    while questions.recv():
        questions.send(Path(scratch).is_dir())


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_the_folder_stays_while_the_parent_closes_its_pipes(has_pidfd, tmp_path):
    """multiprocessing first closes the pipe that represents the parent, then removes the folder itself."""
    context = decoder_processes.start_context(["sftn_fast.data.torchvision_decoder", "torchvision.io"])
    ours, theirs = context.Pipe()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    child = context.Process(target=answer, args=(str(scratch), theirs, has_pidfd))
    child.start()
    theirs.close()
    ours.send(True)
    assert ours.recv()
    child._popen.finalizer()
    for _ in range(200):
        ours.send(True)
        assert ours.recv()
    ours.send(False)
    multiprocessing.process._children.discard(child)  # or Python would wait for it at exit, through the closed pipe


# Systems without pidfd


class Parent:
    """A process whose pipe is already closed, so that join() returns at once."""

    def __init__(self, pid):
        self.pid, self.joined = pid, False

    def join(self):
        self.joined = True


def refused(_):
    raise PermissionError("Operation not permitted")


@pytest.fixture(params=["missing", "refused"])
def no_pidfd(request, monkeypatch):
    if request.param == "missing":
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", refused)
    monkeypatch.setattr(decoder_processes, "POLL_SECONDS", 0.01)


def test_without_pidfd_the_process_itself_is_waited_for(no_pidfd):
    process = subprocess.Popen(["sleep", "60"])
    parent = Parent(process.pid)
    waiting = threading.Thread(target=decoder_processes.wait_until_gone, args=(parent,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert parent.joined and waiting.is_alive()
    process.kill()
    process.wait()
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_parent_that_is_gone_already_is_not_waited_for(no_pidfd):
    process = subprocess.Popen(["true"])
    process.wait()
    decoder_processes.wait_until_gone(Parent(process.pid))


def test_on_windows_the_parent_is_sent_no_signal(monkeypatch):
    """On Windows os.kill ends the process whatever the signal, and join() waits for the process itself."""
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("sent"))
    parent = Parent(os.getpid())
    decoder_processes.wait_until_gone(parent)
    assert parent.joined


def test_without_a_fork_server_processes_are_spawned(monkeypatch):
    assert decoder_processes.start_context([]).get_start_method() == "forkserver"
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert decoder_processes.start_context(["torch"]).get_start_method() == "spawn"
