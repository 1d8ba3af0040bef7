"""``python -m sftn_fast.train``: parse, run, and leave with an exit code that says how it ended.

0: done. 2: the command line, the configuration or a file it names can't be used. 128 + n: stopped by signal n, after a
checkpoint was written. 1: the training itself went wrong, in one line where that was foreseen, else in a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sftn_fast import cli
from sftn_fast.config import Config, ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment that ``argv`` describes; returns the exit code."""
    try:
        config, recipe = cli.parse(sys.argv[1:] if argv is None else argv)
        print(f"recipe {recipe}, output in {config.output}", flush=True)
        return _run(config)
    except ConfigError as error:
        return _fail(error, 2)


def _run(config: Config) -> int:
    # Imported late: it brings torch, which --help and a refused option can do without.
    from sftn_fast import experiment
    from sftn_fast.engine import CheckpointError, Interrupted, NonFiniteError
    from sftn_fast.schedule import StageError

    try:
        experiment.run(config)
    except Interrupted as interrupted:
        print(f"{interrupted}; the same command goes on from here", file=sys.stderr)
        return 128 + interrupted.signum
    except (NonFiniteError, CheckpointError, StageError) as error:
        return _fail(error, 1)
    return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
