"""Programs of the package as processes that start at once: forked from a server that has imported torch already.

A fresh interpreter spends more time on importing than these tests on training. A forked one is a program all the same:
it has its own process group, standard streams, environment, signals and exit code. So are the processes that it starts
itself by ``python -m``, such as those of a pool and of torchrun, unless COLD is in its environment.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

ONE_THREAD = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
COLD = "TESTS_START_INTERPRETERS"
"""Name of the variable with which a program starts fresh interpreters, as it does outside of the tests."""

SERVER = """
import importlib, io, json, os, runpy, signal, socket, subprocess, sys, traceback, warnings

for name in ("torch._dynamo", "torch.distributed.run", "sftn_fast.train", "sftn_fast.experiment.run",
             "sftn_fast.experiment.dry_run", "sftn_fast.report", "sftn_fast.distillers.methods", "matplotlib.pyplot"):
    importlib.import_module(name)
os.fsync = os.fstat  # as in unsynced.py
sys.path.insert(0, "FOLDER")
importlib.import_module("sketched")
sys.path.pop(0)

def open_streams():
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(target, "w", closefd=False), write_through=True)
                              for target in (1, 2))

def run(module, argv, environment, streams):
    os.setsid()
    for target, stream in enumerate(streams, start=1):
        os.dup2(stream, target)
        os.close(stream)
    open_streams()
    os.environ.update(environment)
    if "COLD" not in environment:
        subprocess.Popen.__init__ = start_warm
    importlib.import_module("torch").set_num_threads(1)
    sys.argv = [module, *argv]
    sys.exit(importlib.import_module(module).main())

start = subprocess.Popen.__init__

def start_warm(process, args, **options):
    if args[0] == sys.executable and "-m" in args:
        module, *argv = args[args.index("-m") + 1:]
        environment, kept = dict(options.get("env") or os.environ), options.get("pass_fds", ())
        options["preexec_fn"] = lambda: become(module, argv, environment, kept)  # in the fork, instead of exec
    start(process, args, **options)

def become(module, argv, environment, kept):
    code = 1
    try:
        kept = sorted({0, 1, 2, *kept})
        for last, following in zip(kept, [*kept[1:], 2**12]):
            os.closerange(last + 1, following)  # the parent waits for the end of one of them
        signal.set_wakeup_fd(-1)
        for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            if callable(signal.getsignal(signum)):
                signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
        open_streams()
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
        sys.argv = [module, *argv]
        warnings.filterwarnings("ignore", message=".*found in sys.modules")  # what is warm
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)

assert len(os.listdir("/proc/self/task")) == 1, "a process with threads can't be forked"
connection = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    message, descriptors, _, _ = socket.recv_fds(connection, 2**20, 3)
    if not message:
        break
    *streams, report = descriptors
    if os.fork():
        for descriptor in (*streams, report):
            os.close(descriptor)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.close()
    program = os.fork()
    if not program:
        os.close(report)
        run(**json.loads(message), streams=streams)
    for stream in streams:
        os.close(stream)
    os.write(report, f"{program}\\n".encode())
    os.write(report, f"{os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])}\\n".encode())
    os._exit(0)
""".replace("COLD", COLD).replace("FOLDER", str(Path(__file__).parent))


@functools.cache
def _server() -> socket.socket:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-c", SERVER, str(there.fileno())]
    environment = {**os.environ, **ONE_THREAD}
    environment.pop("CXX", None)  # torch reads it once, so that a program could not have another
    server = subprocess.Popen(argv, pass_fds=[there.fileno()], env=environment)
    there.close()

    def stop() -> None:
        server.kill()
        server.wait()
        here.close()

    atexit.register(stop)
    return here


class Program:
    """``python -m module`` with ``options``, as a running process. As a context it is killed at the end."""

    def __init__(self, module: str, *options: str, **environment: str) -> None:
        pipes = [os.pipe() for _ in range(3)]
        message = json.dumps({"module": module, "argv": options, "environment": environment})
        socket.send_fds(_server(), [message.encode()], [there for _, there in pipes])
        for _, there in pipes:
            os.close(there)
        self.stdout, self._stderr, self._report = (os.fdopen(here) for here, _ in pipes)
        self._errors: list[str] = []
        self._reader = threading.Thread(target=lambda: self._errors.append(self._stderr.read()))
        self._reader.start()
        self.pid = int(self._report.readline())
        self.returncode: int | None = None

    def communicate(self) -> tuple[str, str]:
        """Wait for the end; return what is left of standard output, and all of standard error."""
        rest = self.stdout.read()
        self._reader.join()
        self.returncode = int(self._report.readline())
        for stream in (self.stdout, self._stderr, self._report):
            stream.close()
        return rest, self._errors[0]

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.returncode is None:
            os.killpg(self.pid, 9)
            self.communicate()


def run(module: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` with ``options`` to its end."""
    with Program(module, *options, **environment) as program:
        out, errors = program.communicate()
        assert program.returncode is not None
        return subprocess.CompletedProcess([module, *options], program.returncode, out, errors)


TRAIN = "sftn_fast.train"
Train = functools.partial(Program, TRAIN)
train = functools.partial(run, TRAIN)
