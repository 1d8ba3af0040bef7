"""Training program: ``python -m sftn_fast.train``.

Exit codes:

- 0: done.
- 1: the training failed, with one line for an expected error, else a traceback.
- 2: the command line, the configuration or a file in it can't be used.
- 128 + n: stopped by signal n, after a checkpoint was saved.

Under torchrun each process runs this program, and torchrun itself exits with 1 for any other code than 0. An error on
all ranks is printed by the first.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial

from sftn_fast import cli
from sftn_fast.config import Config, ConfigError
from sftn_fast.experiment import fork_server
from sftn_fast.experiment.fork_server import ForkServer
from sftn_fast.utils import allocator, launcher, program
from sftn_fast.utils.program import fail


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment that ``argv`` describes and return the exit code."""
    # For Ctrl-C outside of training: while importing, reading images or writing the report.
    arguments = list(sys.argv[1:] if argv is None else argv)
    dry = cli.split_dry_run(arguments)[1]  # what it prints is its only result
    stopped = "; run the same command to resume"
    return program.run(_main, arguments, stopped=stopped, output_matters=dry, tell_of_readers=True)


def run(config: Config, *, server: ForkServer | None = None) -> None:
    """Train the jobs of ``config``, print the report and export the student.

    Args:
        config: Of the experiment.
        server: Forks the processes that run jobs side by side on the CPU; without it they import all by themselves.

    Raises:
        ConfigError: A setting or a file can't be used.
        Interrupted: A signal stopped the training. A checkpoint was saved.
    """
    from sftn_fast import report
    from sftn_fast.experiment.run import run as run_experiment

    run_experiment(config, report=partial(report.write, width=report.terminal_width()), server=server)


def _main(argv: list[str]) -> int:
    launcher.check()
    arguments, dry = cli.split_dry_run(argv)
    try:
        parsed = cli.read(arguments)
    except ConfigError as error:
        return fail(error, 2) if launcher.rank() == 0 else 2
    if dry:
        return _run(parsed, dry=True)
    with fork_server.started(parsed.config) as server:  # which imports torch while this process does
        return _run(parsed, dry=False, server=server)


def _run(parsed: cli.Parsed, *, dry: bool, server: ForkServer | None = None) -> int:
    # Imported late, since --help and a wrong option need no torch.
    import torch

    from sftn_fast.engine import CheckpointError, Interrupted, NonFiniteError, PeerError, distributed
    from sftn_fast.experiment import dry_run
    from sftn_fast.experiment.pool import JobError
    from sftn_fast.utils.checksummed import DamagedError

    config = parsed.config
    if config.engine.device == "cpu" or not torch.cuda.is_available():
        allocator.keep_freed_memory()
    distributed.say(f"recipe {parsed.recipe}, output in {config.output}")
    for line in (*cli.describe_twins(config), *(f"warning: {line}" for line in parsed.unread)):
        distributed.say(line)
    try:
        dry_run.run(config) if dry else run(config, server=server)
    except Interrupted as interrupted:
        if launcher.rank() == 0:
            print(f"{interrupted}; run the same command to resume", file=sys.stderr)
        return 128 + interrupted.signum
    except NonFiniteError as error:  # all ranks raise it
        return fail(error, 1) if launcher.rank() == 0 else 1
    except ConfigError as error:
        return fail(error, 2)
    except (CheckpointError, JobError, DamagedError) as error:
        return fail(error, 1)
    except OSError as error:  # a full disk, a removed folder
        return fail(error, 1)
    except PeerError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
