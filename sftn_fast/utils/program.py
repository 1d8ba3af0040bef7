"""Start and end of every program of the package: streams, exit codes, errors in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

from sftn_fast import __version__
from sftn_fast.config import ConfigError
from sftn_fast.utils import launcher, streams
from sftn_fast.utils.atomic import describe
from sftn_fast.utils.text import printable_lines

INTERRUPTED = 128 + signal.SIGINT
VERSION = ("-V", "--version")
_caller = ContextVar("caller", default="python -m sftn_fast.")
"""What the user typed before the name of a program."""


@contextmanager
def called_by(caller: str) -> Iterator[None]:
    """Return a context in which the programs were called by the words ``caller``, such as "sftn ", and their names."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def name_of(program: str) -> str:
    """Return what the user types to start ``program``, such as "sftn train", in the way that this one was started."""
    return f"{_caller.get()}{program}"


def run(
    work: Callable[[list[str]], int],
    argv: Sequence[str] | None,
    *,
    stopped: str = "",
    output_matters: bool = False,
    tell_of_readers: bool = False,
) -> int:
    """Run ``work`` and return the exit code of the program.

    Args:
        work: Function that does what the command line says and returns the exit code. A :class:`ConfigError` is code 2,
            an ``OSError`` code 1, Ctrl-C code 130, each with one line.
        argv: Command line; None for that of the process.
        stopped: Text after "stopped by SIGINT".
        output_matters: Return 1 if the output can't be written, for programs whose only result is their output. It
            always matters where ``work`` ends by ``SystemExit``, which is the end of ``--help`` and the like.
        tell_of_readers: Report a closed pipe, for programs that run for a long time.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    asks_version = any(part in VERSION for part in arguments)
    with streams.lasting() as lasting:
        lasting.tell_of_readers = tell_of_readers
        try:
            code = _print_version() if asks_version else work(arguments)
        except ConfigError as error:
            code = fail(error, 2)
        except KeyboardInterrupt:
            print(f"stopped by SIGINT{stopped}", file=sys.stderr)
            code = INTERRUPTED
        except OSError as error:  # from the system, which has its own messages
            code = fail(error, 1)
        except SystemExit as exit:
            sys.stdout.flush()
            if lasting.failed and not exit.code:
                raise SystemExit(1) from None
            raise
        sys.stdout.flush()
        return code or int((output_matters or asks_version) and lasting.failed)


def _print_version() -> int:
    print(f"sftn_fast {__version__}")
    return 0


def fail(error: Exception, code: int) -> int:
    """Print ``error``, with the rank of this process if there are several, and return ``code``."""
    message = describe(error) if isinstance(error, OSError) else str(error)
    print(f"{_rank()}error: {printable_lines(message or type(error).__name__)}", file=sys.stderr)
    return code


def exit_on_interrupt() -> None:
    """Make Ctrl-C exit with one line and code 130 until :func:`run` takes over.

    ``python -m sftn_fast.PROGRAM`` imports the package of the program, and with it torch, before the program's own
    code can catch an exception.
    """
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by SIGINT", file=sys.stderr)
        raise SystemExit(INTERRUPTED)
    sys.__excepthook__(kind, error, trace)


def _rank() -> str:
    try:
        return f"rank {launcher.rank()}: " if launcher.rank() else ""
    except ConfigError:  # the error to print is about the rank
        return ""
