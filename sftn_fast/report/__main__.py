"""``python -m sftn_fast.report FOLDER``."""

import sys

from sftn_fast.utils import program


def main(argv: list[str]) -> int:
    """Make the report that ``argv`` asks for; returns the exit code."""
    from sftn_fast import report  # late, since it takes seconds in which somebody may press Ctrl-C

    return report.main(argv)


if __name__ == "__main__":
    sys.exit(program.run(main, None, output_matters=True))
