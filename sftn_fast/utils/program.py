"""How every program of the package starts and ends: its streams, its exit code, its errors in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

from sftn_fast.config import ConfigError
from sftn_fast.utils import launcher, streams
from sftn_fast.utils.atomic import describe
from sftn_fast.utils.text import printable_lines


def run(
    work: Callable[[list[str]], int],
    argv: Sequence[str] | None,
    *,
    stopped: str = "",
    output_matters: bool = False,
    tell_of_readers: bool = False,
) -> int:
    """Return the exit code of a program.

    Args:
        work: Does what the command line says, and returns the exit code. A :class:`ConfigError` of its own is 2.
        argv: The command line, null for the process's own.
        stopped: What is said after "stopped by SIGINT".
        output_matters: The program is there for what it prints, so that it has failed where that can't be written.
        tell_of_readers: Say so where the reader of the output leaves, because the program goes on for long.
    """
    with streams.lasting() as lasting:
        lasting.tell_of_readers = tell_of_readers
        try:
            code = work(list(sys.argv[1:] if argv is None else argv))
        except ConfigError as error:
            code = fail(error, 2)
        except KeyboardInterrupt:
            print(f"stopped by SIGINT{stopped}", file=sys.stderr)
            code = 128 + signal.SIGINT
        except OSError as error:  # of the machine, which has its own words for it
            code = fail(error, 1)
        sys.stdout.flush()
        return code or int(output_matters and lasting.failed)


def fail(error: Exception, code: int) -> int:
    """Print ``error``, with the number of this process where there are several; returns ``code``."""
    message = describe(error) if isinstance(error, OSError) else str(error)
    print(f"{_rank()}error: {printable_lines(message or type(error).__name__)}", file=sys.stderr)
    return code


def _rank() -> str:
    try:
        return f"rank {launcher.rank()}: " if launcher.rank() else ""
    except ConfigError:  # which is what is said
        return ""
